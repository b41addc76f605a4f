"""Match the extents of two hidden states `[*batch, *extent, width]`, and flatten them to positions.

The extent is the height and width of an image, or the length of a sequence. Losses that compare positions bring
student and teacher to the same extent with these functions and exclude the padding of texts.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.term import mask_padding, precise, real_tokens


def average_pool(states: Float[Array, "..."], extent: tuple[int, ...]) -> Float[Array, "..."]:
    """Average-pool states to `[*batch, *extent, width]`, like PyTorch's adaptive average pooling.

    Window i of m over n positions spans floor(i n / m) to ceil((i + 1) n / m); windows overlap where m does not divide
    n.
    """
    first_axis = states.ndim - 1 - len(extent)
    for axis, size in enumerate(extent, first_axis):
        if states.shape[axis] != size:
            weights = jnp.asarray(_pooling_weights(states.shape[axis], size), states.dtype)
            # "highest": TPUs multiply in bfloat16
            states = jnp.moveaxis(jnp.tensordot(states, weights, axes=(axis, 1), precision="highest"), -1, axis)
    return states


def _pooling_weights(positions: int, windows: int) -> np.ndarray:
    """Return the weights of each window's mean, `[windows, positions]`."""
    position, window = np.arange(positions), np.arange(windows)[:, None]
    inside = (position >= window * positions // windows) & (position < -(-(window + 1) * positions // windows))
    return inside / inside.sum(axis=1, keepdims=True)


def pool_to_same_extent(student: Array, teacher: Array, batch_dims: int) -> tuple[Array, Array]:
    """Pool the larger of two maps to the extent of the smaller one; return both in float32 or higher.

    Raises:
        ValueError: the extents differ and are not those of maps with the same number of axes, two or more.
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
    """Flatten the extent to one axis of positions.

    Returns:
        The states `[*batch, positions, width]`, 0 at padding tokens of a text, and the number of real positions,
        `[*batch]` or one number.

    Raises:
        ValueError: the states have no extent, or only one position.
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
