"""What relational terms share: the rows of the global batch that they compare, and lengths whose gradient is finite.

A row is an example: of an image its embedding, of a text or a running sequence the mean over its tokens. Rows are
gathered first, since a relation joins rows of different devices, and rows that do not count become zeros before any
operation sees them: what padding holds, NaN included, reaches neither the value nor the gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.collectives import gather
from jaxdistill.core.types import Array, Outputs, Signals
from jaxdistill.losses.hidden.layers import layer_pairs
from jaxdistill.losses.term import extent_mean, one_of, precise

Layers = tuple[int, int] | None  # what is compared: None: embeddings; else hidden states (student layer, teacher layer)


class Compared(NamedTuple):
    """What a relational term reads, of all devices.

    student: `[rows, width]`
    teacher: `[rows, teacher_width]`
    counts: `[rows]`, False for padding, whose rows are zeros
    """

    student: Array
    teacher: Array
    counts: Array


def compared(signals: Signals, layers: Layers, teacher: int, *, flat: bool = False) -> Compared:
    """The rows of the global batch as a term's config names them; arguments as of `own`."""
    return Compared(*gather(own(signals, layers, teacher, flat=flat)))


def own(signals: Signals, layers: Layers, teacher: int, *, flat: bool = False) -> Compared:
    """This device's rows, in float32 at least.

    Args:
        signals: of the stream.
        layers: as above; negative numbers count from the end.
        teacher: which teacher. Embeddings of unlike teachers have no mean, so one is chosen.
        flat: a hidden state's positions stand side by side in a row, instead of being averaged; padded ones are zeros.

    Raises:
        ValueError: no such teacher or layer, or one that returns no embedding.
    """
    pair = signals.student, one_of(signals.teachers, teacher)
    counts = row_counts(signals)
    if layers is None:
        rows = [_embedding(outputs, whose) for outputs, whose in zip(pair, ("student", "teacher"), strict=True)]
    else:
        ((i, j),) = layer_pairs((layers,), len(pair[0].hidden_states), len(pair[1].hidden_states))
        chosen = pair[0].hidden_states[i], _kept(pair[1].hidden_states, j)
        rows = [_per_row(states, signals, flat) for states in chosen]
    student, target = (jnp.where(counts[:, None], precise(x), 0) for x in rows)
    return Compared(student, target, counts)


def row_counts(signals: Signals) -> Bool[Array, " rows"]:
    """Which rows of this device count; a sequence does if any of its tokens does."""
    return jnp.any(signals.mask != 0, axis=tuple(range(1, signals.mask.ndim)))


def _embedding(outputs: Outputs, whose: str) -> Array:
    if outputs.embedding is None:
        cure = "name hidden states with layers=(-1, -1)"
        raise ValueError(f"the {whose} returns no embedding (nor does a cache keep one); {cure}")
    return outputs.embedding


def _kept(states: tuple[Array | None, ...], layer: int) -> Array:
    found = states[layer]
    if found is None:
        kept = [number for number, each in enumerate(states) if each is not None]
        raise ValueError(f"layer {layer} of the teacher is not sent; its cache or placement names {kept}")
    return found


def _per_row(states: Array, signals: Signals, flat: bool) -> Array:
    """`[*batch, *extent, width] -> [rows, width]`, of sequences over the tokens that count."""
    mask, states = signals.mask, precise(states)
    if flat:
        real = signals.batch.get("attention_mask", mask) if mask.ndim == 1 else mask
        real = real if real.shape == states.shape[: real.ndim] else mask  # an image has no such positions
        real = real.reshape(real.shape + (1,) * (states.ndim - real.ndim))
        return jnp.where(real != 0, states, 0).reshape(states.shape[0], -1)
    pooled = extent_mean(states, signals.batch, mask.ndim, trailing=1)
    if mask.ndim == 1:
        return pooled
    tokens, real = tuple(range(1, mask.ndim)), (mask != 0)[..., None]
    return jnp.sum(jnp.where(real, pooled, 0), axis=tokens) / jnp.maximum(jnp.sum(real, axis=tokens), 1)


def pairs_of(counts: Bool[Array, " rows"]) -> Bool[Array, "rows rows"]:
    """Which pairs of rows count: those whose rows both do, a row and itself included."""
    return counts[:, None] & counts[None, :]


def pair_mean(values: Float[Array, "rows rows"], pairs: Array) -> Float[Array, ""]:
    """The mean over pairs, weighted by `pairs` `[rows, rows]`; 0 where none counts."""
    total = jnp.sum(pairs, dtype=values.dtype)
    summed = jnp.sum(jnp.where(pairs != 0, values * pairs, 0))
    return summed / jnp.where(total == 0, 1, total)


def gram(x: Float[Array, "*some rows width"]) -> Float[Array, "*some rows rows"]:
    """Inner products of rows with rows. Accelerators would round their factors to 10 bits or fewer if not told."""
    return jnp.einsum("...iw,...jw->...ij", x, x, precision=jax.lax.Precision.HIGHEST)


def length(x: Float[Array, "*some width"]) -> Float[Array, " *some"]:
    """Euclidean length; 0 with a gradient of 0 for a zero vector, where JAX's own is NaN. A NaN stays one."""
    square = jnp.sum(x**2, axis=-1)
    zero = square == 0
    # selected twice: the gradient of a root at 0 is infinite, and infinity times 0 is NaN
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def smooth_l1(difference: Float[Array, "*some"]) -> Float[Array, "*some"]:
    """Half a square up to 1, then a straight line (Huber, with a border of 1)."""
    size = jnp.abs(difference)
    return jnp.where(size < 1, 0.5 * difference**2, size - 0.5)
