"""The content of result.json: the results of a trained model besides its weights."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.memory import device_memory, size_of
from jaxdistill.core.types import Shapes, Variables
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.evaluation.comparison import paired_answers
from jaxdistill.evaluation.cost import forward_pass
from jaxdistill.evaluation.evaluator import ANSWERS, reliability, scores
from jaxdistill.evaluation.latency import Latency, latencies, timer
from jaxdistill.run.differing_records import differing
from jaxdistill.run.train import Trained
from jaxdistill.teachers.teacher import one_example


class Result(NamedTuple):
    """The result of `distill`: the scores and the variables of all models.

    rows: the result table, one dict per model: name, accuracy, nll, ece, parameters, bytes, flops, latency_ms, and
        measures of transfer from the teacher, such as agreement
    variables: parameters and state of every model, by its name in the table: "teacher NAME", "student" or "control"
    workdir: folder of checkpoints, logs, results.json and report.html
    """

    rows: list[dict[str, Any]]
    variables: dict[str, Variables]
    workdir: Path


def outcome_of(name: str, cost: Mapping[str, Any], trained: Trained) -> dict[str, Any]:
    """Return the content of result.json for one model, as a dict.

    The dict holds the row of the result table, the reliability diagram, the predictions for the test records, the
    training time, the number of compiled programs and the last line of the training log.

    Args:
        name: name of the model in the result table.
        cost: number of parameters, bytes and FLOPs of the model, by column of the table.
        trained: the trained model, the metrics of its evaluation and the training time.
    """
    return {
        "row": {"name": name, **_nested(scores(trained.total)), **cost},
        "reliability": reliability(trained.total),
        "answers": _answers(trained.total),
        "seconds": trained.seconds,
        "compiled": trained.compiled,
        "log": trained.log,
    }


def _nested(scores: Mapping[str, float]) -> dict[str, Any]:
    """Move scores such as `cka/1:2` into a nested dict `cka: {"1:2": ...}`, and replace non-finite scores by None."""
    finite = {name: value if math.isfinite(value) else None for name, value in scores.items()}
    plain = {name: value for name, value in finite.items() if "/" not in name}
    return {**plain, "cka": {name.removeprefix("cka/"): v for name, v in finite.items() if name.startswith("cka/")}}


def _answers(total: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the predictions for the test records as lists by field name; the dict is empty if there are none."""
    return {name: values.tolist() for name, values in total[ANSWERS].values.items()} if ANSWERS in total else {}


def continued(earlier: Sequence[Mapping[str, Any]], steps: int) -> str:
    """Return a sentence that says that a run was resumed with another number of steps, or '' if it was not.

    Args:
        earlier: records of the earlier parts of the run, each with its number of steps under the key `steps`.
        steps: number of steps in the current part.
    """
    before = [part["steps"] for part in earlier if part["steps"] != steps]
    if not before:
        return ""
    went_on = f"The run was begun with {before[0]} steps, and went on with {steps}"
    return f"{went_on}: a model that was trained in both parts had the schedules of both."


class Timed(NamedTuple):
    """A model whose forward pass is timed.

    kind: texts that identify the compiled program, such as spec string and dtype; models of one kind are timed once
    model: the model
    variables: its parameters and state, with any sharding
    """

    kind: tuple[str, ...]
    model: Model
    variables: Variables


def add_latencies(
    outcomes: Mapping[str, dict[str, Any]],
    timed: Mapping[str, Timed],
    rows: Shapes,
    earlier: Sequence[Mapping[str, Any]],
) -> None:
    """Measure the latency of a forward pass on one example, and add its median and range to the row of each model.

    Models with the same compiled program are timed once. All programs are timed in turns, so that their latencies can
    be compared. If the models together need more than half of a device's memory, nothing is timed or added.

    Args:
        outcomes: content of result.json of each model, by name; its table row is changed in place.
        timed: the models that can be run here, by name.
        rows: shapes of the arrays of a batch.
        earlier: table rows of the same run, if it was finished before. If they have a latency for every model in
            `timed`, these latencies are used, and nothing is measured.
    """
    known = {row["name"]: row for row in earlier if row.get("latency_ms") is not None}
    if not known.keys() >= timed.keys():
        kinds = {each.kind: each for each in timed.values()}
        if sum(map(size_of, (each.variables for each in kinds.values()))) > device_memory(jax.devices()[:1]) // 2:
            return  # together on one device, they might not fit
        batch, device = one_example(rows), jax.devices()[0]
        # by way of the host: moved directly, an array keeps the mesh in its type, and a scan over it fails elsewhere
        alone = lambda variables: jax.device_put(jax.device_get(variables), device)
        passes = {
            str(kind): timer(forward_pass(each.model, alone(each.variables), batch)) for kind, each in kinds.items()
        }
        measured = latencies(passes)
        known = {name: _latency_columns(measured[str(each.kind)]) for name, each in timed.items()}
    for name in timed.keys() & outcomes.keys():
        outcomes[name]["row"] |= {key: known[name].get(key) for key in ("latency_ms", "latency_range")}


def _latency_columns(latency: Latency) -> dict[str, Any]:
    return {"latency_ms": latency.median, "latency_range": [latency.low, latency.high]}


MANY_CLASSES = 40  # more do not fit into a confusion matrix on a page


def comparison(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Compare the predictions of student and control for the same test records.

    The control is the same student trained without a teacher. Return a dict with the fields of `PairedRecords`, or None
    if the predictions of one model or the labels are missing.

    Args:
        outcomes: content of result.json of each model, by name.
    """
    pair = paired_answers(*(outcomes.get(name, {}).get("answers") or {} for name in ("student", "control")))
    return pair._asdict() if pair else None


def constant_answer(outcomes: Mapping[str, Mapping[str, Any]], class_names: Sequence[str]) -> tuple[str, float] | None:
    """Return the name of the most frequent class of the test records, and the share of the records that have it.

    Return None if the student's predictions were stored without labels.

    Args:
        outcomes: content of result.json of each model, by name.
        class_names: names of the classes, in order; for a class without a name, its number is returned as text.
    """
    labels = (outcomes.get("student", {}).get("answers") or {}).get("label")
    if not labels:
        return None
    counts = np.bincount(labels)
    most = int(counts.argmax())
    return str(class_names[most]) if most < len(class_names) else str(most), float(counts[most] / counts.sum())


def details(data: Pipeline, outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries of results.json that are computed from the predictions for single test records, as a dict.

    The keys are `test_records` (a hash of the records), `paired` (the comparison of student and control), `confusion`
    (a confusion matrix for each model), and `examples` (records that only student or only control predicts correctly).

    Args:
        data: data pipeline of the run.
        outcomes: content of result.json of each model, by name.
    """
    answers = {name: outcome["answers"] for name, outcome in outcomes.items() if outcome.get("answers")}
    return {
        "test_records": test_records(data),
        "paired": comparison(outcomes),
        "confusion": {name: matrix for name, of_model in answers.items() if (matrix := _confusion(of_model))},
        "examples": differing(data, answers),
    }


def test_records(data: Pipeline) -> str:
    """Return a hash that identifies the test records of a run, or '' if the records cannot be read."""
    try:
        return data.identity(data.test)["contents"]
    except (ConfigError, DamageError):  # the raw records are gone, such as behind a cache of tokens
        return ""


def _confusion(answers: Mapping[str, Any]) -> list[list[int]]:
    """Return the confusion matrix of a model as nested lists: counts of test records, `[true class][predicted class]`.

    Return an empty list if there are no labels, or more than `MANY_CLASSES` classes.
    """
    if "label" not in answers:
        return []
    labels, predicted = np.asarray(answers["label"]), np.asarray(answers["predicted"])
    classes = int(max(labels.max(), predicted.max())) + 1
    if classes > MANY_CLASSES:
        return []
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predicted), 1)
    return counts.tolist()
