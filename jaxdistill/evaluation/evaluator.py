"""Evaluate a model on held-out data, and compare it with its teachers to measure what was transferred."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.interfaces import Fusion, Model
from jaxdistill.core.sums import add
from jaxdistill.core.types import NO_OUTPUTS, Array, Outputs, PyTree, Signals, Variables
from jaxdistill.evaluation import metrics
from jaxdistill.losses.term import mask_padding
from jaxdistill.models.combinators import strip_prefix

Evaluate = Callable[[PyTree, PyTree, tuple[Variables, ...], Mapping[str, Array]], dict[str, Any]]


def evaluator(
    student: Model,
    teachers: Sequence[Model],
    fusion: Fusion | None,
    layers: Sequence[tuple[int, int]],
    prefix: str = "",
) -> Evaluate:
    """Make a function that computes the metrics of one evaluation batch, as sums.

    If a teacher has other tokens or classes than the student, the metrics that compare them are left out.

    Args:
        student: the model to evaluate.
        teachers: the models to compare with: the fused outputs, and the hidden states of the first teacher.
        fusion: combines the teachers, without parameters; None: there are no teachers.
        layers: (student layer, teacher layer) pairs whose CKA is measured.
        prefix: prefix of the batch fields that the student reads; empty: the fields without a prefix.

    Returns:
        `(params, state, frozen, rows) -> {name: metric}`; params and state are by role.
    """

    def evaluate(params, state, frozen, rows):
        rows = strip_prefix(rows, prefix) if prefix else rows
        key, mask, labels = jax.random.key(0), rows["mask"], rows["label"]
        out, _ = student.apply(params["student"], state["student"], rows, train=False, key=key)
        teacher_outputs = (
            t.apply(v.params, v.state, rows, train=False, key=key)[0] for t, v in zip(teachers, frozen, strict=True)
        )
        dense = tuple(outputs.dense() for outputs in teacher_outputs)
        logits = out.dense().logits
        results = {
            "accuracy": metrics.accuracy(logits, labels, mask),
            "nll": metrics.nll(logits, labels, mask),
            "ece": metrics.calibration(logits, labels, mask),
        }
        if labels.ndim > 1:  # a label for each token
            results["perplexity"] = metrics.perplexity(logits, labels, mask)
        if fusion is None or not _comparable(logits, dense):
            return results
        signals = Signals(out, dense, NO_OUTPUTS, rows, mask, jnp.zeros((), jnp.int32), 1.0, {})
        fused, _ = fusion.apply({}, {}, signals, key=key)
        comparison = _agreement_metrics(logits, fused.logits, labels, mask)
        return {**results, **comparison, **_cka_metrics(out, dense[0], layers, rows)}

    return evaluate


def with_evolving_teachers(evaluate: Evaluate, evolve: Callable[..., tuple[Variables, ...]]) -> Evaluate:
    """Compare with the teachers that the step has trained so far; `evolve` is `Step.evolve_teachers`."""
    return lambda params, state, teachers, rows: evaluate(params, state, evolve(params, state, teachers), rows)


def _comparable(student: Array, teachers: Sequence[Outputs]) -> bool:
    """Return True if there are teachers, and all have the tokens and classes of the student."""
    return bool(teachers) and all(t.spans is None and t.logits.shape == student.shape for t in teachers)


def _agreement_metrics(student: Array, teacher: Array, labels: Array, mask: Array) -> dict[str, Any]:
    return {
        "agreement": metrics.agreement(student, teacher, mask),
        "kl": metrics.divergence(student, teacher, mask),
        "agreement_on_errors": metrics.agreement_on_errors(student, teacher, labels, mask),
        "rank_correlation": metrics.rank_correlation(student, teacher, labels, mask),
    }


def _cka_metrics(
    student: Outputs, teacher: Outputs, layers: Sequence[tuple[int, int]], rows: Mapping[str, Array]
) -> dict[str, Any]:
    # zeros add nothing to a Gram matrix, so that the result does not depend on the length of the padding
    states = lambda outputs, layer: mask_padding(outputs.hidden_states[layer], rows)
    available = [(i, j) for i, j in layers if teacher.hidden_states[j] is not None]  # a cache may lack layers
    pairs = {f"cka/{i}:{j}": (states(student, i), states(teacher, j)) for i, j in available}
    return {name: metrics.cka(x, y, rows["mask"]) for name, (x, y) in pairs.items()}


def totals(batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sum the metrics of all batches on the host, in float64."""
    total: dict[str, Any] = {}
    for batch in batches:
        total = add(total, batch) if total else jax.tree.map(lambda x: np.asarray(x, np.float64), batch)
    return total


def scores(total: Mapping[str, Any]) -> dict[str, float]:
    """Compute the value of each metric, and the number of teacher errors behind `agreement_on_errors`."""
    values = {name: float(metric.compute()) for name, metric in total.items()}
    if "agreement_on_errors" in total:
        values["teacher_errors"] = float(total["agreement_on_errors"].count)
    return values


def reliability(total: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Return the bins of a reliability diagram; empty bins have count 0, and None as confidence and accuracy."""
    confidence, accuracy, count = total["ece"].curve()
    filled = lambda values: [value if n else None for value, n in zip(values.tolist(), count, strict=True)]
    return {"confidence": filled(confidence), "accuracy": filled(accuracy), "count": count.tolist()}
