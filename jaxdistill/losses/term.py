"""What terms share. Their common case is a pure function of the signals, without parameters or state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxdistill.core.schedules import Scalar, as_schedule, require_positive
from jaxdistill.core.types import Array, Signals, Term


def stateless(values: Callable[[Signals], Array | tuple[Array, Array]], **fields: Any) -> Term:
    """A term that computes `values(signals)` and remembers nothing; `fields` as of `Term`."""

    def apply(params, state, signals, *, key):
        return values(signals), state

    return Term(lambda key, signals: ({}, {}), apply, **fields)


def softened(values: Callable[[Signals], Array], temperature: Scalar, scale_t2: bool, **fields: Any) -> Term:
    """A stateless term that compares the student with the fused teacher at a temperature.

    Args:
        values: of the signals; `signals.temperature` is that of the step.
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2: the gradient of a softened divergence falls with it.
        fields: as of `Term`.

    Raises:
        ValueError: the temperature is not positive throughout.
    """
    schedule = require_positive("temperature", as_schedule(temperature))
    scaled = lambda signals: values(signals) * signals.temperature**2
    return stateless(scaled if scale_t2 else values, needs=frozenset({"teacher"}), temperature=schedule, **fields)


def precise(x: Array) -> Array:
    """In float32 at least: bfloat16 is raised, for a KL in it came out at -0.014; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def labels_of(signals: Signals, field: str = "label") -> Array:
    """The batch's labels `[*batch]`; 0 of rows that do not count: in a gradient, a NaN there would survive the mask."""
    return jnp.where(signals.mask != 0, signals.batch[field], 0)


def extent_mean(values: Array, batch: Mapping[str, Array], batch_dims: int, trailing: int = 0) -> Array:
    """`[*batch, *extent, *trailing] -> [*batch, *trailing]`: the mean over positions, over real tokens where known.

    Args:
        values: what is averaged; a text's padding, by the batch's `attention_mask` `[batch, length]`, counts nothing.
        batch: the stream's arrays.
        batch_dims: how many dimensions the mask of the stream has.
        trailing: how many dimensions stay, such as a width.
    """
    last = values.ndim - trailing
    axes = tuple(range(batch_dims, last))
    real = real_tokens(batch, values.shape[:last]) if axes else None
    if real is None:
        return jnp.mean(values, axis=axes)
    real = real.reshape(real.shape + (1,) * trailing)
    return jnp.sum(jnp.where(real, values, 0), axis=axes) / jnp.maximum(jnp.sum(real, axis=axes), 1)


def real_tokens(batch: Mapping[str, Array], positions: tuple[int, ...]) -> Array | None:
    """Which of the positions `(batch, length)` hold a token and no padding; None where the batch does not tell."""
    real = batch.get("attention_mask")
    return None if real is None or real.shape != positions else real != 0


def without_padding(states: Array, batch: Mapping[str, Array]) -> Array:
    """`[batch, length, ...]` with zeros where the batch says that there is no token; anything else as it is."""
    real = real_tokens(batch, states.shape[:2]) if states.ndim > 2 else None  # `[batch, width]` has no tokens
    return states if real is None else jnp.where(real.reshape(real.shape + (1,) * (states.ndim - 2)), states, 0)


def unit(x: Array, axis: int = -1) -> Array:
    """Divided by the norm along an axis; a vector of zeros stays one, with a gradient of 0."""
    x = precise(x)
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    zero = square == 0  # selected twice: the gradient of a root at 0 is infinite, and 0 * inf is NaN
    return x * jnp.where(zero, 0.0, 1 / jnp.sqrt(jnp.where(zero, 1.0, square)))


def one_of[T](teachers: Sequence[T], number: int) -> T:
    """The teacher, or its parameters, of a number in the order of the config.

    Raises:
        ValueError: if there is none.
    """
    if not -len(teachers) <= number < len(teachers):
        raise ValueError(f"there is no teacher {number}; teachers count from 0, and there are {len(teachers)}")
    return teachers[number]
