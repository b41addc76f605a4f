"""Split the signals of a sequence into chunks, and put the signals of one chunk together again.

The arrays of a stream are of two kinds. Arrays with an entry for each token (features or logits, hidden states, labels,
the mask) are cut along the sequence into `[chunks, batch, length / chunks, ...]`, so that a scan takes one chunk after
the other. All else (kernels of heads, parameters, fields of the batch without a token dimension) is shared by all
chunks and is not copied. A cut along the sequence, not along the batch, leaves the batch dimension and its layout on
the devices as they are. The result is right for every local term, whose value at a token depends on that token alone.
The cost is one transpose of the per-token arrays.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.jaxpr import used_inputs
from jaxdistill.core.types import Array, Factored, Outputs, PyTree, Signals


def is_factored(signals: Signals) -> bool:
    """Return True if the student's head is not multiplied out."""
    return isinstance(signals.student.logits, Factored)


class Chunks(NamedTuple):
    """Signals in two parts: what all chunks share, and the arrays with a row for each token.

    shared: signals with None in place of the rows
    rows: `[chunks, batch, length / chunks, ...]`
    """

    shared: Signals
    rows: PyTree


def split_into_chunks(signals: Signals, chunks: int) -> Chunks:
    """Split signals along the sequence; every chunk keeps the layout of the batch on the devices.

    Pooled embeddings, attentions and gradients have no token dimension and are left out, because no local term reads
    them. Teachers with other tokens are left out for the same reason.

    Raises:
        ValueError: the number of chunks does not divide the length of the sequence.
    """
    missing: Any = None
    length = signals.mask.shape[1]
    if length % chunks:
        raise ValueError(f"{chunks} chunks do not divide a sequence of {length} tokens")

    def cut(x: Array) -> Array:  # [batch, length, ...] -> [chunks, batch, length / chunks, ...]
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, length // chunks, *x.shape[2:]), 1, 0)

    def token_arrays(outputs: Outputs) -> tuple[PyTree, ...]:
        if outputs.spans is not None:
            return missing, ()
        logits = outputs.logits
        return (logits.features if isinstance(logits, Factored) else logits), outputs.hidden_states

    def shared_part(outputs: Outputs) -> Outputs:
        if outputs.spans is not None:
            return Outputs(missing)
        return Outputs(replace(outputs.logits, features=missing) if isinstance(outputs.logits, Factored) else missing)

    per_token = {k: x for k, x in signals.batch.items() if x.shape[:2] == signals.mask.shape}
    rows = (token_arrays(signals.student), [token_arrays(t) for t in signals.teachers], per_token, signals.mask)
    shared = replace(
        signals,
        student=shared_part(signals.student),
        teachers=tuple(map(shared_part, signals.teachers)),
        batch={k: x for k, x in signals.batch.items() if k not in per_token},
        mask=missing,
    )
    return Chunks(shared, jax.tree.map(cut, rows))


def signals_of_chunk(shared: Signals, rows: PyTree) -> Signals:
    """Return the signals of one chunk, from the shared part and the chunk's rows."""

    def outputs(shared_part: Outputs, arrays: tuple[PyTree, ...]) -> Outputs:
        features, hidden_states = arrays
        head = shared_part.logits
        return Outputs(replace(head, features=features) if isinstance(head, Factored) else features, hidden_states)

    student, teachers, batch, mask = rows
    return replace(
        shared,
        student=outputs(shared.student, student),
        teachers=tuple(outputs(part, x) for part, x in zip(shared.teachers, teachers, strict=True)),
        batch={**shared.batch, **batch},
        mask=mask,
    )


def with_dense_logits(shared: Signals, rows: PyTree) -> Chunks:
    """Return one chunk with dense logits in place of its factored heads, as `[1, batch * length, ...]`."""
    missing: Any = None
    student, teachers, batch, mask = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), rows)

    def dense(shared_part: Outputs, arrays: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        features, hidden_states = arrays
        head = shared_part.logits
        return (replace(head, features=features).dense() if isinstance(head, Factored) else features), hidden_states

    teacher_arrays = [dense(part, x) for part, x in zip(shared.teachers, teachers, strict=True)]
    without_heads = replace(shared, student=Outputs(missing), teachers=tuple(Outputs(missing) for _ in teacher_arrays))
    return Chunks(without_heads, (dense(shared.student, student), teacher_arrays, batch, mask))


def reads_logits(function: Callable[[PyTree, PyTree], Any], shared: PyTree, rows: PyTree) -> bool:
    """Return True if a function of a chunk uses the student's logits.

    Args:
        function: `(shared, rows of one chunk)`.
        shared: what all chunks share.
        rows: the rows of all chunks (`Chunks.rows`) and the numbers of the chunks.
    """
    one_chunk = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    _, (((features, _), *_), _) = used_inputs(function, shared, one_chunk)
    return any(jax.tree.leaves(features))
