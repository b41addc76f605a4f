"""Helpers of the relational losses: one vector per example of the global batch, masks of pairs, and safe norms.

Each example is one row: its embedding, or a hidden state averaged over its positions (tokens or pixels). The rows of
all devices are gathered first, because a relation may join rows of different devices. Masked rows are set to 0 before
any operation, so their contents, including NaN, reach neither the value nor the gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.collectives import gather
from jaxdistill.core.types import Array, Outputs, Signals
from jaxdistill.losses.hidden.layers import chosen_pairs
from jaxdistill.losses.term import mean_over_positions, precise, select_teacher

LayerPair = tuple[int, int] | None  # hidden states (student layer, teacher layer); None: embeddings


class Representations(NamedTuple):
    """The vectors that represent the examples of a batch in the student and in a teacher, one row for each example.

    student: `[rows, width]`
    teacher: `[rows, teacher_width]`
    valid: `[rows]`, False for padding; the vectors of these rows are zeros
    """

    student: Array
    teacher: Array
    valid: Array


def gather_representations(signals: Signals, layers: LayerPair, teacher: int, *, flat: bool = False) -> Representations:
    """Return one vector of the student and one of a teacher for each example of the global batch.

    The vectors are gathered from all devices. A vector is a hidden state or the model's embedding.

    Args:
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
        layers: pair (student layer, teacher layer) whose hidden states are used; negative numbers count from the end;
            None uses the models' embeddings.
        teacher: index of the teacher, in the order of the config.
        flat: concatenate the positions (tokens or pixels) of a hidden state instead of averaging over them.
    """
    return Representations(*gather(local_representations(signals, layers, teacher, flat=flat)))


def local_representations(signals: Signals, layers: LayerPair, teacher: int, *, flat: bool = False) -> Representations:
    """Return one vector of the student and one of a teacher for each example on this device, in float32 or wider.

    A vector is a hidden state or the model's embedding.

    Args:
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
        layers: pair (student layer, teacher layer) whose hidden states are used; negative numbers count from the end;
            None uses the models' embeddings.
        teacher: index of the teacher, in the order of the config.
        flat: concatenate the positions (tokens or pixels) of a hidden state, with zeros for padding, instead of
            averaging over them.

    Raises:
        ValueError: the teacher or a layer does not exist, or a model returns no embedding.
    """
    student_outputs, teacher_outputs = signals.student, select_teacher(signals.teachers, teacher)
    valid = valid_rows(signals)
    if layers is None:
        rows = [_embedding(student_outputs, "student"), _embedding(teacher_outputs, "teacher")]
    else:
        ((i, j),) = chosen_pairs(signals, (layers,), teacher)
        states = student_outputs.hidden_states[i], teacher_outputs.hidden_states[j]
        rows = [_to_rows(x, signals, flat) for x in states]
    student, target = (jnp.where(valid[:, None], precise(x), 0) for x in rows)
    return Representations(student, target, valid)


def valid_rows(signals: Signals) -> Bool[Array, " rows"]:
    """Return True for each example on this device that is not padding; a sequence is valid if it has a valid token."""
    return jnp.any(signals.mask != 0, axis=tuple(range(1, signals.mask.ndim)))


def _embedding(outputs: Outputs, model_name: str) -> Array:
    if outputs.embedding is None:
        cure = "name hidden states with layers=(-1, -1)"
        raise ValueError(f"the {model_name} returns no embedding (caches do not store it either); {cure}")
    return outputs.embedding


def _to_rows(states: Array, signals: Signals, flat: bool) -> Array:
    """Average or concatenate the positions of hidden states, `[*batch, *positions, width] -> [rows, width]`.

    Only tokens that are not padding enter. For running text, `[rows, length]` tokens, each sequence becomes one row.
    """
    mask, states = signals.mask, precise(states)
    if flat:
        real = signals.batch.get("attention_mask", mask) if mask.ndim == 1 else mask
        real = real if real.shape == states.shape[: real.ndim] else mask  # the positions of an image are no tokens
        real = real.reshape(real.shape + (1,) * (states.ndim - real.ndim))
        return jnp.where(real != 0, states, 0).reshape(states.shape[0], -1)
    pooled = mean_over_positions(states, signals.batch, mask.ndim, trailing=1)
    if mask.ndim == 1:
        return pooled
    tokens, real = tuple(range(1, mask.ndim)), (mask != 0)[..., None]
    return jnp.sum(jnp.where(real, pooled, 0), axis=tokens) / jnp.maximum(jnp.sum(real, axis=tokens), 1)


def valid_pairs(valid: Bool[Array, " rows"]) -> Bool[Array, "rows rows"]:
    """Return the matrix `pairs[i, j] = valid[i] & valid[j]` of all pairs of rows, including each row with itself."""
    return valid[:, None] & valid[None, :]


def pair_mean(values: Float[Array, "rows rows"], pairs: Array) -> Float[Array, ""]:
    """Compute `sum(values * pairs) / sum(pairs)` over all pairs of rows; 0 if all weights are 0.

    Args:
        values: a value for each pair of rows.
        pairs: `[rows, rows]`, the weight of each pair, or True for pairs that count.
    """
    total = jnp.sum(pairs, dtype=values.dtype)
    summed = jnp.sum(jnp.where(pairs != 0, values * pairs, 0))
    return summed / jnp.where(total == 0, 1, total)


def gram(x: Float[Array, "*some rows width"]) -> Float[Array, "*some rows rows"]:
    """Compute the Gram matrix: the inner products of all pairs of rows, in full float32 precision.

    Full precision is requested, because accelerators by default round the factors of a product to 10 bits or fewer.
    """
    return jnp.einsum("...iw,...jw->...ij", x, x, precision=jax.lax.Precision.HIGHEST)


def safe_norm(x: Float[Array, "*some width"]) -> Float[Array, " *some"]:
    """Compute the Euclidean norm over the last axis.

    For a zero vector the gradient is 0, where that of `jnp.linalg.norm` is NaN.
    """
    square = jnp.sum(x**2, axis=-1)
    zero = square == 0
    # selected twice: the gradient of a root at 0 is infinite, and infinity times 0 is NaN
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def smooth_l1(difference: Float[Array, "*some"]) -> Float[Array, "*some"]:
    """Compute the Huber loss with threshold 1: d^2 / 2 where |d| < 1, otherwise |d| - 1 / 2, for d = `difference`."""
    size = jnp.abs(difference)
    return jnp.where(size < 1, 0.5 * difference**2, size - 0.5)
