"""The training objective: fuse the teachers, compute the loss terms, reduce each to a mean, and add them with weights.

Loss terms return one value for each row (example) or token. The means over rows are taken here, not in the terms.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxdistill.core.chunked.terms import (
    ChunkedTerms,
    Kernels,
    chunk_terms,
    chunkable_terms,
    chunked_means,
    group_by_kernel,
    one_pass_loss,
    with_global_counts,
)
from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Fusion, Objective, Term
from jaxdistill.core.schedules import Scalar, StepNumber, as_schedule
from jaxdistill.core.sums import Mean, masked_mean, text_shares, weighted_mean
from jaxdistill.core.types import Array, ByRole, Key, Outputs, Params, PyTree, Signals, State

TEXTS = "segment_ids"  # field of a batch: of each token, the number of its text within the row
TEXT_SHARE = "share_of_text"  # field of a batch in chunks: 1 / the number of tokens of the text, for each token
MeansAndState = tuple[dict[str, Mean], dict[str, State]]  # by loss term, and by role


Reduction = Literal["token", "text"]


class WeightedTerm(NamedTuple):
    """A loss term with its weight in the training loss, and its reduction: how its values are averaged.

    term: the loss term
    weight: a number, or a schedule (a function of the step number)
    reduction: how values of tokens are averaged. "token" is the mean over all tokens of the batch, so that a long text
        counts more than a short one. "text" is the mean over the tokens of each text, then over the texts of the
        batch. Each of several texts that are packed into one row counts as a text, and so does each part of a text that
        is split over two rows. The reduction does not matter for a scalar, or for one value per row
    """

    term: Term
    weight: Scalar = 1.0
    reduction: Reduction = "token"


def reduce(out: Any, signals: Signals, reduction: Reduction = "token") -> Mean:
    """Reduce the values of a loss term to a `Mean`: a sum and a count on this device.

    For the reduction "text", a text of the batch without a value that counts has the mean 0 and counts as a text, as in
    the trainer GOLD of TRL.

    Args:
        out: what the term's `apply` returns: values `[*batch]`; or `(values, mask)` with another mask; or a scalar,
            which counts as one value.
        signals: the signals that the term was computed from. Its mask, `[*batch]`, is used if `out` is an array of
            values: 1 for a row or token that counts, 0 for padding.
        reduction: "token", or "text"; see `WeightedTerm`.

    Raises:
        ValueError: the values have another shape than the mask, or the values of a chunk have a mask of their own.
    """
    values, mask = out if isinstance(out, tuple) else (out, signals.mask)
    for part, of in (("values", values), ("mask", mask)):
        if not hasattr(of, "ndim"):
            wanted = "values, one per row or a scalar, or a pair of values and mask"
            raise ValueError(f"a term returns {wanted}; its {part} is of type {type(of).__name__}")
    if values.ndim == 0:  # every device has the whole scalar, so every device counts 1
        return Mean(values, jnp.ones(()))
    if values.shape != mask.shape:
        raise ValueError(f"a term returns one value per row, {list(mask.shape)}, or a scalar; got {list(values.shape)}")
    if reduction == "token" or mask.ndim < 2:
        return masked_mean(values, mask)
    if TEXT_SHARE in signals.batch:
        if isinstance(out, tuple):
            raise ValueError("reduction='text' needs chunks=1 for a term with a mask of its own")
        return weighted_mean(values, signals.batch[TEXT_SHARE])
    texts = signals.batch.get(TEXTS)
    total = weighted_mean(values, text_shares(mask, texts)).sum
    return Mean(total, text_shares(signals.mask, texts).sum())


def weighted_sum(means: Mapping[str, Mean], weights: Mapping[str, Array | float]) -> Array:
    """Compute `sum_k weights[k] * means[k].sum / means[k].count` over loss terms k.

    If a `Mean` has the sum of this device and the count of all devices, the result is this device's share of the total.
    """
    parts = [weights[name] * mean.sum / jnp.maximum(mean.count, 1) for name, mean in means.items()]
    return jnp.sum(jnp.stack(parts)) if parts else jnp.zeros(())


def _zero_masked_rows(outputs: Outputs, mask: Array) -> Outputs:
    """Set model outputs to 0 for the rows and tokens at which the mask is 0.

    A NaN in such a row of a teacher would make the gradient NaN, even with a weight of 0.
    """

    def select(tree: PyTree, mask: Array) -> PyTree:
        shaped = lambda x: mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        return jax.tree.map(lambda x: jnp.where(shaped(x) != 0, x, 0), tree)

    examples = jnp.any(mask != 0, axis=tuple(range(1, mask.ndim)))  # a sequence counts if any of its tokens does
    if outputs.spans is not None:  # the teacher has its own tokens, which the mask does not cover
        mask = (outputs.spans.number != 0) & examples[:, None]
    return Outputs(
        logits=select(outputs.logits, mask),
        hidden_states=select(outputs.hidden_states, mask),
        attentions=select(outputs.attentions, examples),
        embedding=select(outputs.embedding, examples),
        text_embedding=select(outputs.text_embedding, examples),
        scale=select(outputs.scale, examples),
        bias=select(outputs.bias, examples),
        input_gradients=select(outputs.input_gradients, examples),
        state_gradients=select(outputs.state_gradients, mask),
        spans=outputs.spans,
        sparse=select(outputs.sparse, mask),
    )


def _dense_signals(signals: Signals, temperature: Callable[[Array], Array] | None = None) -> Signals:
    """Prepare signals (model outputs and batch) for a loss term: dense logits, masked teachers, its temperature.

    Args:
        signals: the models' outputs; their temperature is a factor on the term's.
        temperature: `(step) -> temperature` of the term; None means the temperature 1.
    """
    at = jnp.ones((), float) if temperature is None else temperature(signals.step) * signals.temperature
    teachers = tuple(_zero_masked_rows(teacher.dense(), signals.mask) for teacher in signals.teachers)
    batch = dict(signals.batch)  # a term of a user may write into it, and other terms read it
    return replace(signals, student=signals.student.dense(), teachers=teachers, temperature=at, batch=batch)


def objective(
    terms: Mapping[str, WeightedTerm], fusion: Fusion, chunks: int = 1, kernels: Kernels = "xla"
) -> Objective:
    """Build the objective `sum_k weight_k(step) * mean(term_k)`, e.g. `alpha L_distill + beta L_task + gamma L_reg`.

    A loss term is local if its value at a token depends on that token alone.

    Args:
        terms: the loss terms with their weights, by name.
        fusion: the rule that combines several teachers into one (`signals.teacher`), which the terms read.
        chunks: number of chunks that a sequence is split into, if the student's logits are `Factored` (not computed
            yet). The fusion and all local terms are then computed chunk by chunk, so that the logits of only one chunk
            exist at a time, in the gradient too. Terms that are not local read the whole sequence.
        kernels: "xla"; or "pallas", with which `Objective.loss` computes the fusion and all local terms that read
            logits by one Pallas kernel for each chunk (see `kernels/fused.py`).
    """

    def fuse(
        params: ByRole,
        state: ByRole,
        signals: Signals,
        *,
        key: Key,
        temperature: Callable[[Array], Array] | None = None,
    ) -> tuple[Signals, State]:
        signals = _dense_signals(signals, temperature)
        if not signals.teachers:
            return signals, state["fusion"]
        teacher, fusion_state = fusion.apply(params["fusion"], state["fusion"], signals, key=key)
        return replace(signals, teacher=teacher), fusion_state

    def init(key: Key, signals: Mapping[str, Signals]) -> tuple[dict[str, Params], dict[str, State]]:
        train_signals = _dense_signals(signals["train"])
        params: dict[str, PyTree] = {"fusion": {}, "terms": {}}
        state: dict[str, PyTree] = {"fusion": {}, "terms": {}}
        if train_signals.teachers:
            params["fusion"], state["fusion"] = fusion.init(key, train_signals)
        for number, (name, (term, *_)) in enumerate(terms.items()):
            fused, _ = fuse(params, state, signals[term.stream], key=key, temperature=term.temperature)
            term_key = jax.random.fold_in(key, number)
            params["terms"][name], state["terms"][name] = term.init(term_key, fused)
        return params, state

    def apply(params: ByRole, state: ByRole, signals: Mapping[str, Signals], *, key: Key) -> MeansAndState:
        means: dict[str, Mean] = {}
        for stream, names in chunkable(signals).items():
            means |= chunked_means(chunked(params, state, signals[stream], key, names))
        return complete(means, params, state, signals, key)

    def loss(
        params: ByRole,
        state: ByRole,
        signals: Mapping[str, Signals],
        weights: Mapping[str, Array],
        *,
        key: Key,
    ) -> tuple[Float[Array, ""], MeansAndState]:
        values: list[Array] = []
        chunkwise: dict[str, Mean] = {}
        for stream, names in chunkable(signals).items():
            chunked_of = functools.partial(chunked, params, state, signals[stream], key)
            for kernel, group in group_by_kernel(names, chunked_of, kernels).items():
                value, means = one_pass_loss(chunked_of(group), {name: weights[name] for name in group}, kernel)
                values.append(value)
                chunkwise |= means
        means, new_state = complete(chunkwise, params, state, signals, key)
        rest = weighted_sum({name: mean for name, mean in means.items() if name not in chunkwise}, weights)
        return sum(values, rest), (means, new_state)

    def complete(
        means: Mapping[str, Mean], params: ByRole, state: ByRole, signals: Mapping[str, Signals], key: Key
    ) -> MeansAndState:
        """Add the means of the loss terms that were not computed in chunks; return all means and the new state."""
        means = dict(means)
        new_state = {"fusion": state["fusion"], "terms": {name: state["terms"][name] for name in means}}
        for name, (term, *_) in terms.items():
            if name not in means:
                mean, new_state["terms"][name], fusion_state = term_mean(name, params, state, signals[term.stream], key)
                means |= with_global_counts({name: mean})
                new_state["fusion"] = fusion_state if term.stream == "train" else new_state["fusion"]
        for name, (term, *_) in terms.items():
            if term.follow is not None:
                mean = Mean(psum(means[name].sum), means[name].count)
                new_state["terms"][name] = term.follow(new_state["terms"][name], mean, signals[term.stream].step)
        return means, new_state

    def term_mean(
        name: str, params: ByRole, state: ByRole, signals: Signals, key: Key, chunk: Int[Array, ""] | None = None
    ) -> tuple[Mean, State, State]:
        """Compute the mean of one loss term; `chunk` is a chunk's number if `signals` are one chunk of the sequence."""
        (term, _, reduction), number = terms[name], list(terms).index(name)
        # Fused again at each term's temperature; XLA merges equal computations. The fusion has the same key for all
        # chunks, so that every chunk of a sequence gets the same teacher.
        fused, fusion_state = fuse(params, state, signals, key=key, temperature=term.temperature)
        if {"teacher", "alignment"} & term.needs == {"teacher"} and fused.teacher.spans is not None:
            raise ValueError("the teacher reads other tokens than the student; only gold and uld compare such models")
        term_key = jax.random.fold_in(key if chunk is None else jax.random.fold_in(key, chunk), number)
        out, term_state = term.apply(params["terms"][name], state["terms"][name], fused, key=term_key)
        return reduce(out, fused, reduction), term_state, fusion_state

    def chunkable(signals: Mapping[str, Signals]) -> dict[str, list[str]]:
        """Return `{stream: names}` of the loss terms that are computed chunk by chunk over the sequence."""
        return chunkable_terms({name: each.term for name, each in terms.items()}, signals) if chunks > 1 else {}

    def chunked(params: ByRole, state: ByRole, signals: Signals, key: Key, names: Sequence[str]) -> ChunkedTerms:
        if any(terms[name].reduction == "text" for name in names):  # a chunk does not know the lengths of its texts
            signals = replace(
                signals, batch={**signals.batch, TEXT_SHARE: text_shares(signals.mask, signals.batch.get(TEXTS))}
            )
        return chunk_terms(lambda *args: term_mean(*args)[0], names, params, state, signals, key, chunks)

    def weights(step: StepNumber) -> dict[str, Array]:
        return {name: as_schedule(each.weight)(step) for name, each in terms.items()}

    def total(means: Mapping[str, Mean], step: StepNumber) -> Float[Array, ""]:
        return weighted_sum(means, weights(step))

    def only(names: tuple[str, ...]) -> Objective:
        return objective({name: terms[name] for name in names}, fusion, chunks, kernels)

    streams = frozenset({"train"} | {each.term.stream for each in terms.values()})
    return Objective(init, apply, loss, fuse, weights, total, tuple(terms), streams, only)
