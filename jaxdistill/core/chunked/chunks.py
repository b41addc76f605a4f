"""Split signals (outputs of the models, and the batch) into chunks of the sequence, and build those of one chunk.

The arrays of signals are of two kinds. Arrays with a value for each token (features or logits, hidden states, labels,
the mask) are split along the sequence into `[chunks, batch, length / chunks, ...]`, so that a scan takes one chunk
after the other. All else (kernels of heads, parameters, fields of the batch without a token dimension) is shared by all
chunks and is not copied. A split along the sequence, not along the batch, leaves the batch dimension and its layout on
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
    """Return True if the student's logits are `Factored`: not computed yet, but kept as `features` and `kernel`."""
    return isinstance(signals.student.logits, Factored)


class Chunks(NamedTuple):
    """Signals (model outputs and batch) that are split along the sequence, so that a scan can take chunk after chunk.

    shared: the values that are the same for all chunks: the signals, with None in place of every array in `rows`
    rows: a pytree of the arrays with one value for each token, in the shape `[chunks, batch, length / chunks, ...]`
    """

    shared: Signals
    rows: PyTree


def split_into_chunks(signals: Signals, chunks: int) -> Chunks:
    """Split signals (model outputs and batch) into chunks of the sequence; the batch dimension is not split.

    Of the model outputs, only logits and hidden states are kept. Local loss terms, whose value at a token depends on
    that token alone, read nothing else. The outputs of a teacher with another tokenizer are left out, too.

    Args:
        signals: signals whose student has `Factored` logits (not computed yet).
        chunks: the number of chunks.

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
    """Build the signals (model outputs and batch) of one chunk of the sequence from the result of `split_into_chunks`.

    Args:
        shared: the values that are the same for all chunks (`Chunks.shared`).
        rows: the arrays of the chunk, `[batch, length / chunks, ...]`: one entry along the first axis of `Chunks.rows`.
    """

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
    """Compute the logits of one chunk of the sequence from its features, and merge the batch and token dimensions.

    Args:
        shared: the values that are the same for all chunks (`Chunks.shared`), with the kernels of the last layers.
        rows: the arrays of the chunk, `[batch, length / chunks, ...]`: one entry along the first axis of `Chunks.rows`.

    Returns:
        A single chunk: `shared` without the kernels of the last layers, and `rows` with arrays
        `[1, batch * length / chunks, ...]` and with logits in place of features.
    """
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
    """Return True if the results of a function of one chunk of the sequence depend on the student's logits.

    Args:
        function: `(shared, (rows of one chunk, number of the chunk)) -> results`.
        shared: the values that are the same for all chunks, such as parameters.
        rows: the pair `(Chunks.rows, numbers of the chunks [chunks])`, with the arrays of all chunks.
    """
    one_chunk = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    _, (((features, _), *_), _) = used_inputs(function, shared, one_chunk)
    return any(jax.tree.leaves(features))
