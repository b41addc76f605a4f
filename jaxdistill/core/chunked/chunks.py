"""A sequence in pieces, for what is computed piece by piece."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.jaxpr import reads
from jaxdistill.core.types import Array, Factored, Outputs, PyTree, Signals


def is_factored(signals: Signals) -> bool:
    """Whether the student's head is not multiplied out."""
    return isinstance(signals.student.logits, Factored)


class Pieces(NamedTuple):
    """Signals apart: what all pieces of a sequence read, and what has a row for each token.

    shared: with None where the rows belong
    rows: `[chunks, batch, length / chunks, ...]`
    """

    shared: Signals
    rows: PyTree


def cut(signals: Signals, chunks: int) -> Pieces:
    """Pieces along the sequence, so that each stays spread over the devices as the batch is.

    Pooled embeddings, attentions and gradients belong to no piece and are left out; a local term reads none of them.
    Nor does it read teachers of other tokens, of which nothing is left.
    """
    nothing: Any = None
    length = signals.mask.shape[1]
    if length % chunks:
        raise ValueError(f"{chunks} chunks do not divide a sequence of {length} tokens")

    def each(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, length // chunks, *x.shape[2:]), 1, 0)

    def tokens(outputs: Outputs) -> tuple[PyTree, ...]:
        if outputs.spans is not None:
            return nothing, ()
        logits = outputs.logits
        return (logits.features if isinstance(logits, Factored) else logits), outputs.hidden_states

    def others(outputs: Outputs) -> Outputs:
        if outputs.spans is not None:
            return Outputs(nothing)
        return Outputs(replace(outputs.logits, features=nothing) if isinstance(outputs.logits, Factored) else nothing)

    per_token = {k: x for k, x in signals.batch.items() if x.shape[:2] == signals.mask.shape}
    rows = (tokens(signals.student), [tokens(teacher) for teacher in signals.teachers], per_token, signals.mask)
    shared = replace(
        signals,
        student=others(signals.student),
        teachers=tuple(map(others, signals.teachers)),
        batch={k: x for k, x in signals.batch.items() if k not in per_token},
        mask=nothing,
    )
    return Pieces(shared, jax.tree.map(each, rows))


def joined(shared: Signals, rows: PyTree) -> Signals:
    """The signals of one piece."""

    def outputs(like: Outputs, rows: tuple[PyTree, ...]) -> Outputs:
        return Outputs(
            replace(like.logits, features=rows[0]) if isinstance(like.logits, Factored) else rows[0], rows[1]
        )

    student, teachers, batch, mask = rows
    return replace(
        shared,
        student=outputs(shared.student, student),
        teachers=tuple(outputs(like, x) for like, x in zip(shared.teachers, teachers, strict=True)),
        batch={**shared.batch, **batch},
        mask=mask,
    )


def multiplied(shared: Signals, rows: PyTree) -> Pieces:
    """One piece with its heads multiplied out, as `[1, batch * length, ...]`."""
    nothing: Any = None
    student, teachers, batch, mask = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), rows)

    def tokens(like: Outputs, rows: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        logits, states = rows
        return (replace(like.logits, features=logits).dense() if isinstance(like.logits, Factored) else logits), states

    taught = [tokens(like, x) for like, x in zip(shared.teachers, teachers, strict=True)]
    silent = replace(shared, student=Outputs(nothing), teachers=tuple(Outputs(nothing) for _ in taught))
    return Pieces(silent, (tokens(shared.student, student), taught, batch, mask))


def reads_logits(piece: Callable[[PyTree, PyTree], Any], shared: PyTree, rows: PyTree) -> bool:
    """Whether a function of a piece needs the student's logits; its rows are those of `Pieces` and their number."""
    given = shared, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    _, (((features, _), *_), _) = reads(piece, *given)
    return any(jax.tree.leaves(features))
