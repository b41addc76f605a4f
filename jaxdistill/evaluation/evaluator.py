"""A student on held-out data, beside its teachers: what it knows, what it costs, and what was really transferred."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.sums import add
from jaxdistill.core.types import NO_OUTPUTS, Array, Fusion, Model, Outputs, PyTree, Signals, Variables
from jaxdistill.evaluation import metrics
from jaxdistill.losses.term import without_padding
from jaxdistill.models.combinators import view

Evaluate = Callable[[PyTree, PyTree, tuple[Variables, ...], Mapping[str, Array]], dict[str, Any]]


def evaluator(
    student: Model,
    teachers: Sequence[Model],
    fusion: Fusion | None,
    layers: Sequence[tuple[int, int]],
    reads: str = "",
) -> Evaluate:
    """The metrics of one evaluation batch, as sums; beside teachers of other tokens or classes, the student's alone.

    Args:
        student: measured.
        teachers: beside whom; the fused teacher is the reference, and the first one's layers.
        fusion: how they become one, without parameters; not needed without teachers.
        layers: (student layer, teacher layer) pairs whose CKA is measured.
        reads: how the names of the fields begin that it reads, if it has fields of its own.

    Returns:
        `(params, state, frozen, rows) -> {name: metric}`; params and state by role.
    """

    def evaluate(params, state, frozen, rows):
        rows = view(rows, reads) if reads else rows
        key, mask, labels = jax.random.key(0), rows["mask"], rows["label"]
        out, _ = student.apply(params["student"], state["student"], rows, train=False, key=key)
        said = (
            t.apply(v.params, v.state, rows, train=False, key=key)[0] for t, v in zip(teachers, frozen, strict=True)
        )
        seen = tuple(outputs.dense() for outputs in said)
        logits = out.dense().logits
        found = {
            "accuracy": metrics.accuracy(logits, labels, mask),
            "nll": metrics.nll(logits, labels, mask),
            "ece": metrics.calibration(logits, labels, mask),
        }
        if labels.ndim > 1:  # of tokens
            found["perplexity"] = metrics.perplexity(logits, labels, mask)
        if fusion is None or not _comparable(logits, seen):
            return found
        signals = Signals(out, seen, NO_OUTPUTS, rows, mask, jnp.zeros((), jnp.int32), 1.0, {})
        fused, _ = fusion.apply({}, {}, signals, key=key)
        return {**found, **_beside(logits, fused.logits, labels, mask), **_layers(out, seen[0], layers, rows)}

    return evaluate


def beside_evolving(evaluate: Evaluate, evolve: Callable[..., tuple[Variables, ...]]) -> Evaluate:
    """The same, beside the teachers as the step has made them by now; `evolve` as of `Step`."""
    return lambda params, state, given, rows: evaluate(params, state, evolve(params, state, given), rows)


def _comparable(student: Array, teachers: Sequence[Outputs]) -> bool:
    """Whether there are teachers, and all speak of the student's own rows (or tokens) and classes."""
    return bool(teachers) and all(t.spans is None and t.logits.shape == student.shape for t in teachers)


def _beside(student: Array, teacher: Array, labels: Array, mask: Array) -> dict[str, Any]:
    return {
        "agreement": metrics.agreement(student, teacher, mask),
        "kl": metrics.divergence(student, teacher, mask),
        "agreement_on_errors": metrics.agreement_on_errors(student, teacher, labels, mask),
        "rank_correlation": metrics.rank_correlation(student, teacher, labels, mask),
    }


def _layers(
    student: Outputs, teacher: Outputs, layers: Sequence[tuple[int, int]], rows: Mapping[str, Array]
) -> dict[str, Any]:
    # in a Gram matrix zeros add nothing, however long the padding
    states = lambda outputs, layer: without_padding(outputs.hidden_states[layer], rows)
    kept = [(i, j) for i, j in layers if teacher.hidden_states[j] is not None]  # a cached teacher has not all
    pairs = {f"cka/{i}:{j}": (states(student, i), states(teacher, j)) for i, j in kept}
    return {name: metrics.cka(x, y, rows["mask"]) for name, (x, y) in pairs.items()}


def totals(batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sums the metrics of all batches on the host, in float64."""
    total: dict[str, Any] = {}
    for batch in batches:
        total = add(total, batch) if total else jax.tree.map(lambda x: np.asarray(x, np.float64), batch)
    return total


def scores(total: Mapping[str, Any]) -> dict[str, float]:
    """One number for each metric, and on how many errors of the teacher `agreement_on_errors` rests."""
    found = {name: float(metric.compute()) for name, metric in total.items()}
    if "agreement_on_errors" in total:
        found["teacher_errors"] = float(total["agreement_on_errors"].count)
    return found


def reliability(total: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """The bins of a reliability diagram; an empty one has a count of 0 and neither confidence nor accuracy."""
    confidence, accuracy, count = total["ece"].curve()
    told = lambda values: [value if n else None for value, n in zip(values.tolist(), count, strict=True)]
    return {"confidence": told(confidence), "accuracy": told(accuracy), "count": count.tolist()}
