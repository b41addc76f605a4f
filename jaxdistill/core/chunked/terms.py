"""Compute the means of loss terms chunk by chunk over the sequence, with XLA or one Pallas kernel.

Only terms of a stream with a factored head are computed like this, and only local ones, whose value at a token depends
on that token alone: for these, the sum over the sequence is the sum over its chunks. There are two ways.

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
    """The means of terms as a function of one chunk, with its arguments.

    means: `(shared, rows of one chunk and its number) -> {term: Mean}`
    shared: what all chunks share
    rows: the rows of all chunks, `[chunks, batch, ...]`, and the numbers of the chunks, `[chunks]`
    """

    means: Callable[[PyTree, PyTree], dict[str, Mean]]
    shared: PyTree
    rows: PyTree


def with_global_counts(means: Mapping[str, Mean]) -> dict[str, Mean]:
    """Return LOCAL sums over GLOBAL counts, because gradients are summed over devices."""
    return {name: Mean(mean.sum, psum(mean.count)) for name, mean in means.items()}


def chunkable_terms(terms: Mapping[str, Term], signals: Mapping[str, Signals]) -> dict[str, list[str]]:
    """Return the terms that can be computed chunk by chunk, by stream: local terms of streams with a factored head."""
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
    """Return the means of some terms of an objective as a function of one chunk.

    Args:
        term_mean: `(name, params, state, signals, key, number of the chunk) ->` the mean of a term in a chunk.
        names: of the terms.
        params, state: of the objective; the params of other terms are left out, so that they get no gradient.
        signals: of the terms' stream.
        key: the same for all chunks.
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
    """Group terms by what computes them: with "pallas", a kernel for those that read logits and XLA for the others."""
    if kernels == "xla":
        return {"xla": list(names)}
    on_logits = [name for name in names if reads_logits(*chunked([name]))]
    groups: dict[Kernels, list[str]] = {"pallas": on_logits, "xla": [name for name in names if name not in on_logits]}
    return {kernel: group for kernel, group in groups.items() if group}


def chunked_means(chunked: ChunkedTerms) -> dict[str, Mean]:
    """Compute the means over all chunks. For the gradient, the logits of a chunk are computed again and never kept."""
    means, shared, rows = chunked
    recomputed = jax.checkpoint(means)

    def add(totals: PyTree, rows: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, totals, recomputed(shared, rows)), None

    zeros = jax.eval_shape(means, shared, jax.tree.map(lambda x: x[0], rows))
    return with_global_counts(jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros), rows)[0])


def one_pass_loss(
    chunked: ChunkedTerms, weights: Mapping[str, Array], kernel: Kernels
) -> tuple[Array, dict[str, Mean]]:
    """Compute the weighted sum of the means, whose gradient is computed in the same pass, and the means.

    Args:
        chunked: the terms.
        weights: of the terms, by name.
        kernel: computes all these terms.
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
    """Compute `weighted` for a chunk: XLA multiplies out the heads, and one kernel computes the rest, row by row."""
    ((signals, *others), factors), (rows, number) = shared_and_factors, numbered_rows
    without_heads, dense_rows = with_dense_logits(signals, rows)
    of_row = lambda shared, row: weighted(shared[0], (row, shared[1]))
    classes = signals.student.logits.kernel.shape[-1]
    return sum_over_rows(of_row, classes, (((without_heads, *others), factors), number), dense_rows)
