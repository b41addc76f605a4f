"""Measure how many bits of its teachers the models of a run have; write them to RUN/explanation.json and the report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.notes import note
from jaxdistill.core.types import Array, Rows, Variables
from jaxdistill.data.pipeline import Pipeline
from jaxdistill.data.stream import evaluation_batches
from jaxdistill.evaluation.interpret.bits import Bits, bits_beyond
from jaxdistill.evaluation.interpret.relations import edges, nearest, relations, share_kept
from jaxdistill.evaluation.report import explanation, page
from jaxdistill.losses.relations.edges import Graph, write_graph
from jaxdistill.losses.term import mean_over_positions
from jaxdistill.models.abstract import has_no_classes, has_pairs
from jaxdistill.models.combinators import strip_prefix
from jaxdistill.run import workdir
from jaxdistill.run.config_files import load_config
from jaxdistill.run.export_run import check_test_records
from jaxdistill.run.output_checks import check_writable
from jaxdistill.run.predict import load, results
from jaxdistill.run.resolve import Resolved, resolve
from jaxdistill.teachers.load import load as load_teacher

UNTRAINED_SEED = 2**20  # seed of the untrained network, which no run of a study uses
ENOUGH = 3  # networks trained on labels alone, beside which an ordinary control scores about as an untrained network


class RecordOutputs(NamedTuple):
    """The outputs of a network for all test records.

    name: "student", "control", "untrained", or the name of a teacher or of another run
    labels: class of each record, `[records]`
    logits: `[records, classes]`
    layers: hidden states of each layer, as means over positions, each `[records, width]`
    """

    name: str
    labels: np.ndarray
    logits: np.ndarray
    layers: tuple[np.ndarray, ...]


def explain(run: Path, references: Sequence[Path] = (), beyond: Sequence[Path] = (), trust_source: bool = False) -> str:
    """Measure how many bits of each teacher the models of a run have, and return a table as text.

    These are bits of the teacher's log-probabilities that a model predicts, and that neither the labels nor networks
    trained on labels alone predict (see `interpret/bits.py`). They are also written to explanation.json and the report.

    Args:
        run: folder of a finished run of a classifier, with a teacher.
        references: folders of runs with the same test records, whose networks learned from labels alone (their control,
            or the student of a run without teachers); if there are none, the control of `run` is used.
        beyond: folders of runs with the same test records and another teacher. What their students predict is not
            counted either, so that only what the teacher of `run` alone has given remains.
        trust_source: execute the Python files that the runs have kept.

    Raises:
        ConfigError: a folder holds no such run, a run has other test records or no label-trained network, or a model is
            no classifier of the same classes.
        DamageError: a file of a run is damaged.
    """
    finished = results(run)
    check_writable(run, "RUN")
    for option, runs in (("--reference", references), ("--beyond", beyond)):
        places = [str(each.resolve()) for each in runs]
        if repeated := next((place for place in places if places.count(place) > 1), ""):
            raise ConfigError(option, f"{repeated!r} is given {places.count(repeated)} times. Give each run once.")
    if run.resolve() in (each.resolve() for each in beyond):
        raise ConfigError("--beyond", f"{str(run)!r} is the run itself. Give a run with another teacher.")
    resolved = _resolved(run, trust_source)
    if not resolved.teachers:
        raise ConfigError("RUN", f"the run in {str(run)!r} has no teacher: there is nothing to explain.")
    check_test_records(finished, resolved.data)
    names = [name for name in ("student", "control") if name in {row["name"] for row in finished["rows"]}]
    models = [outputs_of(run, name, resolved.data, trust_source=trust_source) for name in names]
    models.append(untrained(run, resolved.data, trust_source))
    known = [_reference(each, finished, trust_source) for each in references]
    if not references:
        known = [each for each in models if each.name == "control"]
        models = [each for each in models if each.name != "control"]
    if not known:
        cure = "Name runs of the same network on labels alone, as --reference RUN"
        raise ConfigError("--reference", f"the run in {str(run)!r} has no control. {cure}.")
    if len(known) < ENOUGH:
        number = f"{len(known)} label-trained network{'s are' if len(known) > 1 else ' is'} known"
        note(f"{number}; name {ENOUGH} by --reference, beside which a network that learned from labels scores little")
    others = [_student(each, finished, trust_source) for each in beyond]
    rows, related = [], {}
    for name in resolved.teachers:
        teacher = _teacher(name, resolved, run, trust_source)
        rows += [_row(teacher, model, [*known, *others]) for model in models]
        related[teacher.name] = nearest(relations(teacher.logits, teacher.labels))
    content = {
        "rows": rows,
        "relations": related,
        "known": [each.name for each in known],
        "beyond": [each.name for each in others],
        "records": len(models[0].labels),
        "classes": list(resolved.data.class_names) or list(map(str, range(models[0].logits.shape[1]))),
    }
    with workdir.locked(run, "RUN", "make it writable, or copy it to a place that is"):
        seal.write(run / explanation.FILE, {**content, **explanation.owner(finished)})
        page.write_page(run)
    return f"{explanation.text_table(content)}\nPage: {run / 'report.html'}\n"


def _resolved(run: Path, trust_source: bool) -> Resolved:
    return resolve(load_config(str(run / "config.json"), trust_source), jax.devices())


def _reference(run: Path, finished: Mapping[str, Any], trust_source: bool) -> RecordOutputs:
    """Return the outputs of the label-trained network of another run: its control, or its student if it has no teacher.

    Raises:
        ConfigError: the run has no such network, or has other test records or classes.
    """
    other, data = _same_records(run, finished, "--reference", trust_source)
    names = {row["name"] for row in other["rows"]}
    model = "student" if not other["config"]["teachers"] else "control"
    if model not in names:
        cure = "Give a run with a control, or one without teachers"
        raise ConfigError("--reference", f"the run in {str(run)!r} has no network of labels alone. {cure}.")
    return outputs_of(run, model, data, str(run), trust_source)


def _student(run: Path, finished: Mapping[str, Any], trust_source: bool) -> RecordOutputs:
    """Return the outputs of the student of another run, whatever it has learned from.

    Raises:
        ConfigError: the run has other test records or classes.
    """
    _, data = _same_records(run, finished, "--beyond", trust_source)
    return outputs_of(run, data=data, name=str(run), trust_source=trust_source)


def _same_records(
    run: Path, finished: Mapping[str, Any], option: str, trust_source: bool
) -> tuple[Mapping[str, Any], Pipeline]:
    """Return the results and the data pipeline of a run, after checking that its test records are those of another run.

    Args:
        run: folder of the run.
        finished: results of the other run.
        option: command-line option that names the run, for error messages.
        trust_source: execute the Python file that the run has kept.

    Raises:
        ConfigError: the run has other test records or classes, or its test records have changed since it finished.
    """
    other = results(run, option)
    for key, what in (("test_records", "other test records"), ("class_names", "other classes")):
        if (other.get(key) or "") != (finished.get(key) or ""):
            raise ConfigError(option, f"the run in {str(run)!r} has {what}. Give a run on the same records.")
    data = _resolved(run, trust_source).data
    try:
        check_test_records(other, data)
    except ConfigError as error:
        raise ConfigError(option, f"{str(run)!r}: {error.message}") from None
    return other, data


def outputs_of(
    run: Path, model: str = "student", data: Pipeline | None = None, name: str = "", trust_source: bool = False
) -> RecordOutputs:
    """Return the outputs of a model of a run for all test records.

    Args:
        run: folder of the run.
        model: "student", "control" or "teachers/NAME".
        data: data pipeline of the run; if it is None, the pipeline is built from the run's config.
        name: name of the model in tables; if it is empty, `model` is used.
        trust_source: execute the Python file that the run has kept.

    Raises:
        ConfigError: there is no such model, it is no classifier of records, or a logit is not finite.
    """
    predictor = load(run, model, trust_source)
    return _outputs(name or model, predictor.model, predictor.variables, data or _resolved(run, trust_source).data)


def untrained(run: Path, data: Pipeline | None = None, trust_source: bool = False) -> RecordOutputs:
    """Return the outputs of a run's student with random initial weights; the arguments are those of `outputs_of`."""
    data, model = data or _resolved(run, trust_source).data, load(run, "student", trust_source).model
    rows = {name: jnp.zeros(x.shape, x.dtype) for name, x in data.shapes["train"].items()}
    initial = Variables(*jax.jit(model.init)(jax.random.key(UNTRAINED_SEED), rows))
    return _outputs("untrained", model, initial, data)


def _teacher(name: str, resolved: Resolved, run: Path, trust_source: bool) -> RecordOutputs:
    """Return the outputs of a teacher for all test records.

    Its weights come from the run if the run has trained it before the student, and else from its checkpoint.
    """
    if resolved.teachers[name].trained_here:
        return outputs_of(run, f"teachers/{name}", resolved.data, f"teacher {name}", trust_source)
    teacher = resolved.live_teacher(name, alone=True)
    values = load_teacher(teacher, resolved.data.shapes["train"])
    return _outputs(f"teacher {name}", teacher.network, values, resolved.data, teacher.prefix)


def _outputs(name: str, model: Model, variables: Variables, data: Pipeline, prefix: str = "") -> RecordOutputs:
    """Return the outputs of a model for all test records.

    Args:
        name: name of the model, for tables and messages.
        model: the model.
        variables: parameters and state of the model.
        data: data pipeline of the run.
        prefix: prefix of the batch fields that the model reads; empty if they have none.

    Raises:
        ConfigError: the model is no classifier of records, or a logit is not finite.
    """
    records, parts = data.open(data.test), []
    compute = _program(model, prefix, name)
    for batch in evaluation_batches(
        records, batch_size=data.test.batch_size, rows=slice(None), transforms=data.test.transforms
    ):
        parts.append(jax.device_get(compute(variables, jax.tree.map(jnp.asarray, batch))))
    labels, logits, *layers = (np.concatenate(each)[: len(records)] for each in zip(*parts, strict=True))
    if not np.isfinite(logits).all():
        record, number = (int(n[0]) for n in np.nonzero(~np.isfinite(logits)))
        cure = "Explain a run whose networks know all classes"
        raise ConfigError("RUN", f"{name}: the logit of class {number} of test record {record} is not finite. {cure}.")
    return RecordOutputs(name, labels, logits, tuple(layers))


def _program(model: Model, prefix: str, name: str) -> Callable[[Variables, Rows], list[Array]]:
    """Return the compiled function `(variables, batch) -> [labels, logits, means of hidden states over positions]`."""

    def run(variables: Variables, rows: Rows) -> list[Array]:
        rows = strip_prefix(rows, prefix) if prefix else rows
        out, _ = model.apply(variables.params, variables.state, rows, train=False, key=jax.random.key(0))
        logits = out.dense().logits
        if has_pairs(out) or has_no_classes(out) or logits.ndim != 2 or "label" not in rows:
            raise ConfigError("RUN", f"{name}: records or outputs have no class each. Only classifiers are explained.")
        states = [x for x in out.hidden_states if x is not None]
        pooled = [mean_over_positions(x, rows, batch_dims=1, trailing=1).astype(jnp.float32) for x in states]
        return [rows["label"], logits.astype(jnp.float32), *pooled]

    return jax.jit(run)


def _row(teacher: RecordOutputs, model: RecordOutputs, known: Sequence[RecordOutputs]) -> dict[str, Any]:
    """Compute the bits and the class relations of a teacher that a model has, as a row (a dict) of explanation.json.

    Raises:
        ConfigError: the networks have different numbers of classes or different labels, or there are too few records.
    """
    classes = teacher.logits.shape[1]
    if other := [each for each in (model, *known) if each.logits.shape[1] != classes]:
        sizes = f"{teacher.name} has {classes} classes, and {other[0].name} has {other[0].logits.shape[1]}"
        raise ConfigError("RUN", f"{sizes}. Give runs on the same classes.")
    if moved := [each.name for each in (model, *known) if not np.array_equal(each.labels, teacher.labels)]:
        raise ConfigError("RUN", f"{teacher.name} and {moved[0]} have other labels. Give runs on the same records.")
    logits, labels = [each.logits for each in known], teacher.labels
    try:
        bits = bits_beyond(teacher.logits, model.logits, logits, labels)
        layers = [bits_beyond(teacher.logits, layer, logits, labels) for layer in model.layers]
    except ValueError as error:
        raise ConfigError("RUN", f"{teacher.name}: {error}.") from None
    of_teacher, of_model = (nearest(relations(each.logits, labels)) for each in (teacher, model))
    return {
        "teacher": teacher.name,
        "model": model.name,
        **_rounded(bits),
        "relations": of_model,
        "relations_kept": round(share_kept(of_teacher, of_model), 4),
        "by_class": [round(float(x), 4) for x in bits.by_class],
        "by_layer": [_rounded(each) for each in layers],
    }


def _rounded(bits: Bits) -> dict[str, float]:
    return {"bits": round(bits.total, 4), "low": round(bits.low, 4), "high": round(bits.high, 4)}


def _check_nearest(number: int, classes: int) -> None:
    if number >= classes:
        problem = f"{number} relations of each class, and there are {classes} classes"
        raise ConfigError("--nearest", f"{problem}. Give at most {classes - 1}.")


def write_relations(run: Path, model: str, file: Path, number: int, trust_source: bool = False) -> int:
    """Write the class relations of a model (which classes it finds similar) to a graph file, and return their number.

    Args:
        run: folder of a finished run of a classifier.
        model: "student", "control" or "teachers/NAME".
        file: the file to write.
        number: number of nearest classes that each class is related to; 0 means three, or fewer with few classes.
        trust_source: execute the Python file that the run has kept.

    Raises:
        ConfigError: there is no such model, it is no classifier of records, a class has fewer others than `number`, or
            the file cannot be written.
    """
    finished = results(run)
    data = _resolved(run, trust_source).data
    check_test_records(finished, data)
    if data.classes:
        _check_nearest(number, data.classes)
    outputs = outputs_of(run, model, data, trust_source=trust_source)
    strengths = relations(outputs.logits, outputs.labels)
    _check_nearest(number, len(strengths))
    edges_of_teacher, names = edges(strengths, number), data.class_names or tuple(map(str, range(len(strengths))))
    try:
        write_graph(file, Graph(tuple(names), edges_of_teacher))
    except OSError as error:
        raise ConfigError("--out", f"{str(file)!r} cannot be written ({error}). Choose another file.") from None
    return len(edges_of_teacher)
