"""Helpers that loss terms share. Most terms are pure functions of the signals, without parameters or state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term
from jaxdistill.core.types import Array, Signals


def stateless(values: Callable[[Signals], Array | tuple[Array, Array]], **fields: Any) -> Term:
    """Return a term that computes `values(signals)`, without parameters or state; `fields` are fields of `Term`."""

    def apply(params, state, signals, *, key):
        return values(signals), state

    return Term(lambda key, signals: ({}, {}), apply, **fields)


def precise(x: Array) -> Array:
    """Cast to float32 or wider. float64 stays; bfloat16 is raised, because a KL computed in it came out at -0.014."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_labels(signals: Signals, field: str = "label") -> Array:
    """Return the batch's labels `[*batch]`, with 0 in masked rows.

    Padding may have an invalid label, and a NaN in the gradient of a masked row would survive the mask.
    """
    return jnp.where(signals.mask != 0, signals.batch[field], 0)


def mean_over_positions(values: Array, batch: Mapping[str, Array], batch_dims: int, trailing: int = 0) -> Array:
    """Average over positions, without padding: `[*batch, *positions, *trailing] -> [*batch, *trailing]`.

    Args:
        values: the array to average.
        batch: the stream's arrays; an `attention_mask` `[batch, length]` marks the padding of texts.
        batch_dims: number of dimensions of the stream's mask.
        trailing: number of trailing dimensions to keep, such as a width.
    """
    last = values.ndim - trailing
    axes = tuple(range(batch_dims, last))
    real = real_tokens(batch, values.shape[:last]) if axes else None
    if real is None:
        return jnp.mean(values, axis=axes)
    real = real.reshape(real.shape + (1,) * trailing)
    return jnp.sum(jnp.where(real, values, 0), axis=axes) / jnp.maximum(jnp.sum(real, axis=axes), 1)


def real_tokens(batch: Mapping[str, Array], shape: tuple[int, ...]) -> Array | None:
    """Return which positions hold a token and not padding; None without an `attention_mask` of this shape.

    Args:
        batch: the stream's arrays.
        shape: `(batch, length)`.
    """
    real = batch.get("attention_mask")
    return None if real is None or real.shape != shape else real != 0


def mask_padding(states: Array, batch: Mapping[str, Array]) -> Array:
    """Set the padding of `[batch, length, ...]` to zero; return other arrays, or texts without padding, unchanged."""
    real = real_tokens(batch, states.shape[:2]) if states.ndim > 2 else None  # `[batch, width]` has no tokens
    return states if real is None else jnp.where(real.reshape(real.shape + (1,) * (states.ndim - 2)), states, 0)


def unit(x: Array, axis: int = -1) -> Array:
    """Divide by the L2 norm along an axis; a zero vector stays zero, with a gradient of 0."""
    x = precise(x)
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    zero = square == 0  # selected twice: the gradient of a root at 0 is infinite, and 0 * inf is NaN
    return x * jnp.where(zero, 0.0, 1 / jnp.sqrt(jnp.where(zero, 1.0, square)))


def select_teacher[T](teachers: Sequence[T], number: int) -> T:
    """Return one teacher, or its parameters, by its number in the order of the config.

    Raises:
        ValueError: there is no teacher with this number.
    """
    if not -len(teachers) <= number < len(teachers):
        raise ValueError(f"there is no teacher {number}; the config has {len(teachers)}, numbered from 0")
    return teachers[number]
