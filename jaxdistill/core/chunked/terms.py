"""Means of terms over a sequence in pieces: of which terms, by the compiler or by a kernel, and with which gradient."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.chunked.chunks import cut, is_factored, joined, multiplied, reads_logits
from jaxdistill.core.chunked.one_pass import Piece, streamed
from jaxdistill.core.collectives import psum
from jaxdistill.core.kernels.fused import summed
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import Array, PyTree, Signals, Term

Kernels = Literal["xla", "pallas"]


class InPieces(NamedTuple):
    """Means of terms, piece by piece.

    piece: `(shared, rows) -> {term: Mean}`
    shared: what all pieces read
    rows: of all pieces, `[pieces, batch, ...]`, and their numbers
    """

    piece: Callable[[PyTree, PyTree], dict[str, Mean]]
    shared: PyTree
    rows: PyTree


def counted_by_all(means: Mapping[str, Mean]) -> dict[str, Mean]:
    """LOCAL sums over GLOBAL counts, since gradients are summed over devices."""
    return {name: Mean(mean.sum, psum(mean.count)) for name, mean in means.items()}


def local_terms(terms: Mapping[str, Term], signals: Mapping[str, Signals]) -> dict[str, list[str]]:
    """Of each stream whose head is factored, the terms that can be computed piece by piece."""
    factored = [stream for stream, seen in signals.items() if is_factored(seen)]
    local = {s: [name for name, term in terms.items() if term.local and term.stream == s] for s in factored}
    return {stream: names for stream, names in local.items() if names}


def in_pieces(
    mean: Callable[[str, PyTree, PyTree, Signals, Array, Array], Mean],
    names: Sequence[str],
    params: Mapping[str, PyTree],
    state: PyTree,
    signals: Signals,
    key: Array,
    chunks: int,
) -> InPieces:
    """The means of terms of an objective as a function of one piece.

    Args:
        mean: of a term in a piece: `(name, params, state, signals, key, number of the piece) ->` its mean.
        names: of the terms.
        params, state: the objective's; a piece is given no other term's params, so that these get no gradient.
        signals: of their stream.
        key: the same for all pieces.
        chunks: how many pieces.
    """
    silent, tokens = cut(signals, chunks)

    def piece(shared: PyTree, numbered: PyTree) -> dict[str, Mean]:
        (silent, params, state, key), (rows, number) = shared, numbered
        return {name: mean(name, params, state, joined(silent, rows), key, number) for name in names}

    own = {"fusion": params["fusion"], "terms": {name: params["terms"][name] for name in names}}
    return InPieces(piece, (silent, own, state, key), (tokens, jnp.arange(chunks)))


def by_kernels(
    names: Sequence[str], of: Callable[[Sequence[str]], InPieces], kernels: Kernels
) -> dict[Kernels, list[str]]:
    """Which of the terms what computes: a kernel is for those that read logits."""
    if kernels == "xla":
        return {"xla": list(names)}
    reading = [name for name in names if reads_logits(*of([name]))]
    groups: dict[Kernels, list[str]] = {"pallas": reading, "xla": [name for name in names if name not in reading]}
    return {by: group for by, group in groups.items() if group}


def over_pieces(given: InPieces) -> dict[str, Mean]:
    """The means of all pieces. The logits of a piece are formed again for its gradient, and never kept."""
    piece, shared, rows = given
    kept = jax.checkpoint(piece)

    def add(means: PyTree, rows: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, means, kept(shared, rows)), None

    zeros = jax.eval_shape(piece, shared, jax.tree.map(lambda x: x[0], rows))
    return counted_by_all(jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros), rows)[0])


def in_one_pass(given: InPieces, weights: Mapping[str, Array], kernels: Kernels) -> tuple[Array, dict[str, Mean]]:
    """The weighted sum of the means, whose gradient is taken with its value, and the means."""
    piece, shared, rows = given

    def counted(shared: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
        return jnp.zeros(()), {name: mean.count for name, mean in piece(shared, rows).items()}

    def scaled(given: PyTree, rows: PyTree) -> tuple[Array, PyTree]:
        shared, scales = given
        means = piece(shared, rows)
        return sum((scales[name] * mean.sum for name, mean in means.items()), jnp.zeros(())), means

    counts = psum(streamed(counted, shared, rows)[1])  # of masks alone: nothing else of a piece is formed for it
    scales = {name: weight / jnp.maximum(counts[name], 1) for name, weight in weights.items()}
    by = scaled if kernels == "xla" else functools.partial(_by_kernel, scaled)
    value, means = streamed(by, (shared, scales), rows)
    return value, counted_by_all(means)


def _by_kernel(scaled: Piece, given: PyTree, numbered: PyTree) -> tuple[Array, PyTree]:
    """What `scaled` computes of a piece: the products of its heads by XLA, what follows by a kernel, row by row."""
    ((signals, *rest), scales), (rows, number) = given, numbered
    silent, rows = multiplied(signals, rows)
    of_row = lambda given, row: scaled(given[0], (row, given[1]))
    classes = signals.student.logits.kernel.shape[-1]
    return summed(of_row, classes, (((silent, *rest), scales), number), rows)
