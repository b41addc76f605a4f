"""Hidden states with an extent, `[*batch, *extent, width]`: the height and width of an image, or a sequence's tokens.

Terms that compare positions bring student and teacher to one extent here, and leave the padding of texts out.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import precise, real_tokens, without_padding


def pooled(states: Float[Array, "..."], extent: tuple[int, ...]) -> Float[Array, "..."]:
    """The means of evenly spread windows, `[*batch, *extent, width]`; what PyTorch calls adaptive average pooling.

    Window i of m over n positions reaches from floor(i n / m) to ceil((i + 1) n / m): windows overlap where m does not
    divide n.
    """
    first = states.ndim - 1 - len(extent)
    for axis, wanted in enumerate(extent, first):
        if states.shape[axis] != wanted:
            means = jnp.asarray(_windows(states.shape[axis], wanted), states.dtype)
            # "highest": TPUs multiply in bfloat16
            states = jnp.moveaxis(jnp.tensordot(states, means, axes=(axis, 1), precision="highest"), -1, axis)
    return states


def _windows(positions: int, wanted: int) -> np.ndarray:
    """`[wanted, positions]`, each row the weights of a mean."""
    at, window = np.arange(positions), np.arange(wanted)[:, None]
    inside = (at >= window * positions // wanted) & (at < -(-(window + 1) * positions // wanted))
    return inside / inside.sum(axis=1, keepdims=True)


def same_extent(student: Array, teacher: Array, batch_dims: int) -> tuple[Array, Array]:
    """Both in float32 at least, with the same extent: of two maps the larger one is pooled to the smaller.

    Raises:
        ValueError: the extents cannot be laid over each other.
    """
    student, teacher = precise(student), precise(teacher)
    extents = student.shape[batch_dims:-1], teacher.shape[batch_dims:-1]
    if extents[0] == extents[1]:
        return student, teacher
    if len(extents[0]) != len(extents[1]) or len(extents[0]) < 2:
        found = f"the student's hidden state has the extent {extents[0]}, the teacher's {extents[1]}"
        why = "only maps such as (height, width) are pooled, for neighbours in a sequence need not be neighbours"
        raise ValueError(f"{found}; {why}. Choose other layers, or 'hidden', which compares means over positions")
    smaller = tuple(map(min, *extents))
    return pooled(student, smaller), pooled(teacher, smaller)


def positions(states: Array, signals: Signals) -> tuple[Float[Array, "*batch positions width"], Array | int]:
    """States with their extent laid flat, 0 where a text is padded; and how many positions are real, `[*batch]`.

    Raises:
        ValueError: there are no positions to compare: no extent, or a single one.
    """
    dims = signals.mask.ndim
    extent = states.shape[dims:-1]
    if math.prod(extent) < 2 or not extent:
        found = f"a hidden state has the extent {extent}, and one with positions is needed"
        raise ValueError(f"{found}. Choose layers such as [batch, height, width, channels], or use 'hidden'")
    flat = precise(states).reshape(*states.shape[:dims], -1, states.shape[-1])
    real = real_tokens(signals.batch, flat.shape[:-1])
    count = flat.shape[-2] if real is None else jnp.maximum(jnp.sum(real, axis=-1), 1)
    return without_padding(flat, signals.batch), count
