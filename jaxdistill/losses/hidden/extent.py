"""Bring hidden states `[*batch, *extent, width]` of student and teacher to the same positions.

The extent is the sizes of the spatial or sequence axes: `(height, width)` of an image, or `(length,)` of a sequence.
Losses that compare hidden states position by position need equal extents. These functions pool the larger extent to the
smaller one, flatten it to one axis of positions and exclude the padding tokens of texts.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import mask_padding, precise, real_tokens


def average_pool(states: Float[Array, "..."], extent: tuple[int, ...]) -> Float[Array, "..."]:
    """Average-pool the spatial or sequence axes of hidden states, like PyTorch's adaptive average pooling.

    Where n positions are pooled to m windows, window i averages the positions from floor(i n / m) up to, but not
    including, ceil((i + 1) n / m). Windows overlap where m does not divide n.

    Args:
        states: hidden states `[*batch, *old_extent, width]`.
        extent: the new size of each axis of `old_extent`.

    Returns:
        The pooled hidden states, `[*batch, *extent, width]`.
    """
    first_axis = states.ndim - 1 - len(extent)
    for axis, size in enumerate(extent, first_axis):
        if states.shape[axis] != size:
            weights = jnp.asarray(_pooling_weights(states.shape[axis], size), states.dtype)
            # "highest": TPUs multiply in bfloat16
            states = jnp.moveaxis(jnp.tensordot(states, weights, axes=(axis, 1), precision="highest"), -1, axis)
    return states


def _pooling_weights(positions: int, windows: int) -> np.ndarray:
    """Return the matrix `[windows, positions]` that average-pools one axis: each row averages one window."""
    position, window = np.arange(positions), np.arange(windows)[:, None]
    inside = (position >= window * positions // windows) & (position < -(-(window + 1) * positions // windows))
    return inside / inside.sum(axis=1, keepdims=True)


def pool_to_same_extent(student: Array, teacher: Array, batch_dims: int) -> tuple[Array, Array]:
    """Average-pool the hidden states of student and teacher to the smaller of the two sizes along each spatial axis.

    Args:
        student, teacher: hidden states `[*batch, *extent, width]`; `*extent` are the spatial or sequence axes.
        batch_dims: number of axes `*batch`.

    Returns:
        Student and teacher states with equal `*extent`, in float32 or wider. States of equal `*extent` are not pooled.

    Raises:
        ValueError: the states differ in the number of axes, or they are sequences (one axis) of different lengths.
    """
    student, teacher = precise(student), precise(teacher)
    extents = student.shape[batch_dims:-1], teacher.shape[batch_dims:-1]
    if extents[0] == extents[1]:
        return student, teacher
    if len(extents[0]) != len(extents[1]) or len(extents[0]) < 2:
        problem = f"the student's hidden state has extent {extents[0]}, the teacher's {extents[1]}"
        reason = "only maps such as (height, width) are pooled, because neighbours in a sequence may be unrelated"
        raise ValueError(f"{problem}; {reason}. Choose other layers, or 'hidden', which compares means over positions")
    smaller = tuple(map(min, *extents))
    return average_pool(student, smaller), average_pool(teacher, smaller)


def flatten_positions(states: Array, signals: Signals) -> tuple[Float[Array, "*batch positions width"], Array | int]:
    """Flatten the spatial or sequence axes of hidden states to one axis of positions, and count the positions.

    Args:
        states: hidden states `[*batch, *extent, width]`; `*extent` are the spatial or sequence axes.
        signals: the inputs of a loss term; its mask has the axes `*batch`.

    Returns:
        The states `[*batch, positions, width]` in float32 or wider, which are 0 at padding tokens; and the number of
        positions that are not padding, `[*batch]` for a text with an `attention_mask`, otherwise one integer.

    Raises:
        ValueError: the states have fewer than two positions.
    """
    batch_dims = signals.mask.ndim
    extent = states.shape[batch_dims:-1]
    if math.prod(extent) < 2 or not extent:
        problem = f"a hidden state has extent {extent}, but at least two positions are needed"
        raise ValueError(f"{problem}. Choose layers such as [batch, height, width, channels], or use 'hidden'")
    flat = precise(states).reshape(*states.shape[:batch_dims], -1, states.shape[-1])
    real = real_tokens(signals.batch, flat.shape[:-1])
    count = flat.shape[-2] if real is None else jnp.maximum(jnp.sum(real, axis=-1), 1)
    return mask_padding(flat, signals.batch), count
