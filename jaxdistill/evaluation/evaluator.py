"""Evaluate a model on held-out data, and compare it with its teachers to measure what was transferred."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.interfaces import Fusion, Model
from jaxdistill.core.sums import PerRow, add, values_at_labels
from jaxdistill.core.types import NO_OUTPUTS, Array, Outputs, PyTree, Signals, Variables
from jaxdistill.evaluation import metrics
from jaxdistill.evaluation.retrieval import retrieval
from jaxdistill.losses.term import mask_padding
from jaxdistill.models.abstract import has_no_classes, has_pairs
from jaxdistill.models.combinators import strip_prefix

Evaluate = Callable[[PyTree, PyTree, tuple[Variables, ...], Mapping[str, Array]], dict[str, Any]]


ANSWERS = "answers"  # the predictions of the rows, beside the metrics


def evaluator(
    student: Model,
    teachers: Sequence[Model],
    fusion: Fusion | None,
    layers: Sequence[tuple[int, int]],
    prefix: str = "",
) -> Evaluate:
    """Build a function that computes a model's metrics on one batch, as sums that can be added up over batches.

    Records with labels give accuracy, NLL and calibration error, perplexity for texts, and the area under the ROC curve
    for two classes. Metrics that compare the student with its teachers (agreement, KL, rank correlation, CKA) are left
    out if a teacher predicts other tokens or classes than the student; those that need no label are measured on records
    without labels too. A model without classes, which embeds its input, is compared by the cosine similarity of its
    embedding with the teacher's. A classifier also gives its predictions, as `ANSWERS`. A model with two towers (an
    encoder for each side of a pair) is measured by retrieval (`retrieval.py`), and compared by CKA alone.

    Args:
        student: the model to evaluate.
        teachers: the models to compare the student with. The student's logits are compared with the fused logits of all
            teachers, and its hidden states with those of the first teacher.
        fusion: the rule that fuses the logits of all teachers into one; it must have no parameters. With None, the
            student is not compared with teachers.
        layers: pairs (student layer, teacher layer) whose hidden states are compared by centred kernel alignment (CKA).
        prefix: prefix of the batch fields that the student reads, such as "teacher/" for a model with its own
            tokenizer; an empty text if the fields have no prefix.

    Returns:
        `(params, state, frozen, rows) -> {name: metric}`. The student's parameters are `params["student"]`, and its
        state is `state["student"]`. `frozen` has the variables of each teacher; `rows` has the arrays of the batch by
        field.
    """

    def evaluate(
        params: PyTree, state: PyTree, frozen: tuple[Variables, ...], rows: Mapping[str, Array]
    ) -> dict[str, Any]:
        rows = strip_prefix(rows, prefix) if prefix else rows
        key, mask, labels = jax.random.key(0), rows["mask"], rows.get("label")
        out, _ = student.apply(params["student"], state["student"], rows, train=False, key=key)
        teacher_outputs = (
            t.apply(v.params, v.state, rows, train=False, key=key)[0] for t, v in zip(teachers, frozen, strict=True)
        )
        dense, embeds = tuple(outputs.dense() for outputs in teacher_outputs), has_no_classes(out)
        if has_pairs(out):
            similar = _cka_metrics(out, dense[0], layers, rows) if dense else {}
            return {"retrieval": retrieval(out, rows, mask, student.second_prefix), **similar}
        logits = prevent_fusion(out.dense().logits)
        results = {} if labels is None or embeds else _label_metrics(logits, labels, mask)
        if logits.ndim == 3 and mask.ndim == 2 and labels is not None:
            results[ANSWERS] = PerRow(text_answers(logits, labels, mask), (mask != 0).any(-1))
        if logits.ndim == mask.ndim + 1 == 2 and not embeds:
            results[ANSWERS] = PerRow(answers(logits) | ({} if labels is None else {"label": labels}), mask)
        if logits.ndim == 2 and logits.shape[-1] == 2 and labels is not None and not embeds:
            results["auc"] = metrics.Ranking({"score": logits[:, 1] - logits[:, 0], "label": labels}, mask)
        if fusion is None or not _comparable(logits, dense):
            return results
        signals = Signals(out, dense, NO_OUTPUTS, rows, mask, jnp.zeros((), jnp.int32), 1.0, {})
        fused, _ = fusion.apply({}, {}, signals, key=key)
        if embeds:
            comparison = {"similarity": metrics.cosine_similarity(logits, fused.logits, mask)}
        else:
            comparison = _agreement_metrics(logits, fused.logits, labels, mask)
        return {**results, **comparison, **_cka_metrics(out, dense[0], layers, rows)}

    return evaluate


def prevent_fusion(logits: Array) -> Array:
    """Return the logits behind an optimisation barrier, which keeps XLA from fusing them with later operations.

    So a model's logits have the same bits in an evaluation and in a prediction.
    """
    return jax.lax.optimization_barrier(logits)


def answers(logits: Array) -> dict[str, Array]:
    """Return each row's predicted class and its probability: `{"predicted": [rows], "confidence": [rows]}`.

    Args:
        logits: `[rows, classes]`.
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    return {"predicted": logits.argmax(-1), "confidence": jnp.exp(logp.max(-1))}


def text_answers(logits: Array, labels: Array, mask: Array) -> dict[str, Array]:
    """Compute a language model's negative log-likelihood of each row of tokens, and the number of its tokens.

    The result is the dict `{"nll_sum": [rows], "tokens": [rows]}`. `nll_sum` is the sum over the row's tokens, in nats.

    Args:
        logits: `[rows, length, vocabulary]`.
        labels: the next token at each position, `[rows, length]`.
        mask: not 0 for tokens that count, `[rows, length]`.
    """
    logp = values_at_labels(jax.nn.log_softmax(logits.astype(jnp.float32)), labels)
    return {"nll_sum": jnp.where(mask != 0, -logp, 0.0).sum(-1), "tokens": (mask != 0).sum(-1)}


def _label_metrics(logits: Array, labels: Array, mask: Array) -> dict[str, Any]:
    results = {
        "accuracy": metrics.accuracy(logits, labels, mask),
        "nll": metrics.nll(logits, labels, mask),
        "ece": metrics.calibration(logits, labels, mask),
    }
    if labels.ndim > 1:  # a label for each token
        results["perplexity"] = metrics.perplexity(logits, labels, mask)
    return results


def with_evolving_teachers(evaluate: Evaluate, evolve: Callable[..., tuple[Variables, ...]]) -> Evaluate:
    """Wrap an evaluation so that it compares the student with the current teachers, if the step trains the teachers.

    Args:
        evaluate: a function from `evaluator`.
        evolve: the function `evolve_teachers` of the training step, `(params, state, initial) -> current`, where
            `initial` and `current` are the variables of the teachers.
    """
    return lambda params, state, teachers, rows: evaluate(params, state, evolve(params, state, teachers), rows)


def _comparable(student: Array, teachers: Sequence[Outputs]) -> bool:
    """Return True if there are teachers, and all of them predict the same tokens and classes as the student."""
    return bool(teachers) and all(t.spans is None and t.logits.shape == student.shape for t in teachers)


def _agreement_metrics(student: Array, teacher: Array, labels: Array | None, mask: Array) -> dict[str, Any]:
    plain = {
        "agreement": metrics.agreement(student, teacher, mask),
        "kl": metrics.divergence(student, teacher, mask),
    }
    if labels is None:
        return plain
    return {
        **plain,
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
    """Combine the metrics of all batches into one dict, `{name: metric}`, in float64 on the host.

    Metrics that consist of sums are added up. Metrics that hold a value for each row (`PerRow`) are concatenated,
    without the rows that only fill a batch.

    Args:
        batches: yields the metrics of each batch, `{name: metric}`.
    """
    total: dict[str, Any] = {}
    rows: dict[str, list[PerRow]] = {}
    for batch in batches:
        for name, result in batch.items():
            if isinstance(result, PerRow):
                rows.setdefault(name, []).append(result)
        sums = {name: result for name, result in batch.items() if name not in rows}
        total = add(total, sums) if total else jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
    return {**total, **{name: _concatenated(parts) for name, parts in rows.items()}}


def _concatenated(parts: Sequence[PerRow]) -> PerRow:
    real = np.concatenate([np.asarray(part.mask) for part in parts]) > 0
    names = parts[0].values
    values = {name: np.concatenate([np.asarray(part.values[name]) for part in parts])[real] for name in names}
    return replace(parts[0], values=values, mask=real[real])


def scores(total: Mapping[str, Any]) -> dict[str, float]:
    """Compute the value of each metric from its totals over all batches, as a dict by metric name.

    The metric `agreement_on_errors` is a mean over the rows (examples or tokens) on which the teacher is wrong. If it
    is in `total`, the number of these rows is added to the result as `teacher_errors`.

    Args:
        total: `{name: metric}`, from `totals`; entries without a method `compute`, such as predictions, are left out.
    """
    computed = {name: metric.compute() for name, metric in total.items() if hasattr(metric, "compute")}
    several = {key: each for value in computed.values() if isinstance(value, dict) for key, each in value.items()}
    values = {name: float(value) for name, value in computed.items() if not isinstance(value, dict)} | several
    if "agreement_on_errors" in total:
        values["teacher_errors"] = float(total["agreement_on_errors"].count)
    return values


def reliability(total: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Return the reliability diagram of a model as the lists `confidence`, `accuracy` and `count`, one value per bin.

    A bin holds the examples (or tokens) with similar confidence. Its values are their mean confidence, their accuracy
    and their number. An empty bin has the count 0, and None as confidence and accuracy.

    Args:
        total: `{name: metric}`, from `totals`; without the metric `ece`, the result is an empty dict.
    """
    if "ece" not in total:
        return {}
    confidence, accuracy, count = total["ece"].curve()
    filled = lambda values: [value if n else None for value, n in zip(values.tolist(), count, strict=True)]
    return {"confidence": filled(confidence), "accuracy": filled(accuracy), "count": count.tolist()}
