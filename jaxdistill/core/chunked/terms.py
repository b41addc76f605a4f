"""Compute the means of loss terms chunk by chunk over the sequence, with XLA or one Pallas kernel.

A term is computed like this if the student's logits are `Factored` (not computed yet), and if the term is local: its
value at a token depends on that token alone, so that the sum over the sequence is the sum over its chunks. There are
two ways.

`chunked_means` (for `Objective.apply`) scans over the chunks and adds up one `Mean` per term. Its derivative computes
the logits of a chunk a second time, so that one chunk of logits exists at a time.

`one_pass_loss` (for `Objective.loss`) computes the weighted sum of the means with its gradient in one pass
(`one_pass.py`). A gradient of `sum / count` needs the count before the pass begins. So a first scan counts, from masks
alone, and gives each term the factor `weight / global count`. A second scan adds up `factor * sum`. The cost beside the
pass is this first scan, which forms no logits.

With `kernels="pallas"`, the terms that read logits are computed by one kernel for a chunk (`kernels/fused.py`), after
XLA has multiplied out the heads. All other terms are left to XLA.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.chunked.chunks import (
    is_factored,
    reads_logits,
    signals_of_chunk,
    split_into_chunks,
    with_dense_logits,
)
from jaxdistill.core.chunked.one_pass import ChunkFunction, sum_over_chunks
from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Term
from jaxdistill.core.kernels.fused import sum_over_rows
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import Array, PyTree, Signals

Kernels = Literal["xla", "pallas"]


class ChunkedTerms(NamedTuple):
    """A function that computes the means of loss terms on one chunk of the sequence, and its arguments for all chunks.

    means: `(shared, (rows of one chunk, number of the chunk)) -> {term: Mean}`; a `Mean` is a sum and a count
    shared: the values that are the same for all chunks: parameters, kernels of last layers, the PRNG key
    rows: the arrays of all chunks, `[chunks, batch, ...]`, and the numbers of the chunks, `[chunks]`
    """

    means: Callable[[PyTree, PyTree], dict[str, Mean]]
    shared: PyTree
    rows: PyTree


def with_global_counts(means: Mapping[str, Mean]) -> dict[str, Mean]:
    """Replace the count of each `Mean` (a sum and a count) by its total over all devices; keep the sum of this device.

    Then `sum / count` is this device's share of the global mean. The shares of all devices add up to the global mean,
    and their gradients to its gradient.
    """
    return {name: Mean(mean.sum, psum(mean.count)) for name, mean in means.items()}


def chunkable_terms(terms: Mapping[str, Term], signals: Mapping[str, Signals]) -> dict[str, list[str]]:
    """Return `{stream: names}` of the loss terms that can be computed chunk by chunk over the sequence.

    A stream is a named source of examples. A term is chunkable if it is local (its value at a token depends on that
    token alone), and if the student's logits in the term's stream are `Factored` (not computed yet).

    Args:
        terms: the loss terms, by name.
        signals: the outputs of the models and the batch, by stream.
    """
    factored = [stream for stream, of_stream in signals.items() if is_factored(of_stream)]
    local = {s: [name for name, term in terms.items() if term.local and term.stream == s] for s in factored}
    return {stream: names for stream, names in local.items() if names}


def chunk_terms(
    term_mean: Callable[[str, PyTree, PyTree, Signals, Array, Array], Mean],
    names: Sequence[str],
    params: Mapping[str, PyTree],
    state: PyTree,
    signals: Signals,
    key: Array,
    chunks: int,
) -> ChunkedTerms:
    """Split signals along the sequence, and return the means of some loss terms as a function of one chunk.

    Args:
        term_mean: `(name, params, state, signals of a chunk, key, number of the chunk) -> Mean of the term`.
        names: names of the terms.
        params, state: params and state of the objective, with the keys `fusion` and `terms`. The params of terms that
            are not in `names` are left out, so that no gradient is computed for them.
        signals: the outputs of the models and the batch, for the stream (named source of examples) of these terms.
        key: PRNG key, the same for all chunks.
        chunks: the number of chunks.
    """
    shared_signals, tokens = split_into_chunks(signals, chunks)

    def means(shared: PyTree, numbered_rows: PyTree) -> dict[str, Mean]:
        (shared_signals, params, state, key), (rows, number) = shared, numbered_rows
        chunk = signals_of_chunk(shared_signals, rows)
        return {name: term_mean(name, params, state, chunk, key, number) for name in names}

    term_params = {"fusion": params["fusion"], "terms": {name: params["terms"][name] for name in names}}
    return ChunkedTerms(means, (shared_signals, term_params, state, key), (tokens, jnp.arange(chunks)))


def group_by_kernel(
    names: Sequence[str], chunked: Callable[[Sequence[str]], ChunkedTerms], kernels: Kernels
) -> dict[Kernels, list[str]]:
    """Divide loss terms into those that XLA computes and those that a Pallas kernel computes.

    Args:
        names: names of the terms.
        chunked: `(names) -> ChunkedTerms`; traced to find out which terms read the student's logits.
        kernels: "xla" to compute all terms with XLA, or "pallas" to compute the terms that read logits with a Pallas
            kernel.

    Returns:
        `{"xla": names, "pallas": names}`, the names of the terms in each group; empty groups are left out.
    """
    if kernels == "xla":
        return {"xla": list(names)}
    on_logits = [name for name in names if reads_logits(*chunked([name]))]
    groups: dict[Kernels, list[str]] = {"pallas": on_logits, "xla": [name for name in names if name not in on_logits]}
    return {kernel: group for kernel, group in groups.items() if group}


def chunked_means(chunked: ChunkedTerms) -> dict[str, Mean]:
    """Compute the mean of each loss term with a scan over all chunks of the sequence.

    Each `Mean` has the sum of this device and the count of all devices. The logits of a chunk are not kept for the
    gradient: the backward pass computes them again.
    """
    means, shared, rows = chunked
    recomputed = jax.checkpoint(means)

    def add(totals: PyTree, rows: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, totals, recomputed(shared, rows)), None

    zeros = jax.eval_shape(means, shared, jax.tree.map(lambda x: x[0], rows))
    return with_global_counts(jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros), rows)[0])


def one_pass_loss(
    chunked: ChunkedTerms, weights: Mapping[str, Array], kernel: Kernels
) -> tuple[Array, dict[str, Mean]]:
    """Compute `sum_k weights[k] * mean_k` over loss terms k, with its gradient in the same pass over the chunks.

    Args:
        chunked: the means of the terms as a function of one chunk of the sequence.
        weights: the weights of the terms, by name.
        kernel: "xla", or "pallas" to compute the terms with a Pallas kernel.

    Returns:
        The weighted sum (under `pmap`, this device's share of it), and the `Mean` of each term by name, with the count
        of all devices.
    """
    means, shared, rows = chunked

    def counts_of(shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
        return jnp.zeros(()), {name: mean.count for name, mean in means(shared, rows).items()}

    def weighted(shared_and_factors: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
        shared, factors = shared_and_factors
        of_chunk = means(shared, rows)
        return sum((factors[name] * mean.sum for name, mean in of_chunk.items()), jnp.zeros(())), of_chunk

    counts = psum(sum_over_chunks(counts_of, shared, rows)[1])  # reads masks alone: XLA removes all else as dead code
    factors = {name: weight / jnp.maximum(counts[name], 1) for name, weight in weights.items()}
    function = weighted if kernel == "xla" else functools.partial(_with_pallas, weighted)
    value, totals = sum_over_chunks(function, (shared, factors), rows)
    return value, with_global_counts(totals)


def _with_pallas(weighted: ChunkFunction, shared_and_factors: PyTree, numbered_rows: PyTree) -> tuple[Array, PyTree]:
    """Compute `weighted` for one chunk: XLA computes the logits, and one Pallas kernel the rest, token by token."""
    ((signals, *others), factors), (rows, number) = shared_and_factors, numbered_rows
    without_heads, dense_rows = with_dense_logits(signals, rows)
    of_row = lambda shared, row: weighted(shared[0], (row, shared[1]))
    classes = signals.student.logits.kernel.shape[0 if signals.student.logits.tied else -1]
    return sum_over_rows(of_row, classes, (((without_heads, *others), factors), number), dense_rows)
