"""Helpers shared by the loss terms. Most terms are pure functions of `Signals`, without parameters or state."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Shaped

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.types import Array, Key, Params, Signals, State


def stateless(values: Callable[[Signals], Array | tuple[Array, Array]], **fields: Any) -> Term:
    """Build a loss term without parameters or state from a function that computes its values.

    Args:
        values: function of the `Signals` (outputs of student and teachers, and the batch). It returns one loss value
            per example or token, `[*batch]`; or `(values, mask)`, if other values count than the batch's mask says; or
            a scalar, for a regulariser.
        fields: further fields of `Term`, such as `needs` and `local`.
    """

    def apply(
        params: Params, state: State, signals: Signals, *, key: Key
    ) -> tuple[Values | tuple[Values, Shaped[Array, "*batch"]], State]:
        return values(signals), state

    return Term(lambda key, signals: ({}, {}), apply, **fields)


def on_signals(loss: Term, change: Callable[[Signals], Signals]) -> Term:
    """Return a loss term that reads changed signals, such as standardised logits; its other fields are unchanged.

    Args:
        loss: the loss term.
        change: a pure function from the signals (outputs of the models, and the batch) to those that the loss reads.
    """

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        return loss.init(key, change(signals))

    def apply(
        params: Params, state: State, signals: Signals, *, key: Key
    ) -> tuple[Values | tuple[Values, Array], State]:
        return loss.apply(params, state, change(signals), key=key)

    return loss._replace(init=init, apply=apply)


def precise(x: Array) -> Array:
    """Cast an array to float32; a float64 array stays float64.

    Losses are computed in this precision, because rounding to bfloat16 can make a KL divergence negative (-0.014).
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_labels(signals: Signals, field: str = "label") -> Array:
    """Return the labels of the batch, `[*batch]`, replaced by class 0 where the mask is 0.

    Padding may have an invalid label, for which the loss and its gradient are NaN. A multiplication of the loss by the
    mask would leave the NaN in the gradient.

    Args:
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
        field: name of the batch's array of labels.
    """
    return jnp.where(signals.mask != 0, signals.batch[field], 0)


def mean_over_positions(values: Array, batch: Mapping[str, Array], batch_dims: int, trailing: int = 0) -> Array:
    """Average over positions such as pixels or tokens: `[*batch, *positions, *trailing] -> [*batch, *trailing]`.

    Padding tokens are left out; an example that holds only padding gets 0. An array without positions is returned
    unchanged.

    Args:
        values: the array to average.
        batch: the arrays of the batch, by field; its `attention_mask` `[batch, length]` is 0 at padding tokens.
        batch_dims: number of axes `*batch`: 1, or 2 (example, token) in language modelling, where every token has a
            loss of its own.
        trailing: number of axes `*trailing`, for example 1 to keep the width.
    """
    last = values.ndim - trailing
    axes = tuple(range(batch_dims, last))
    real = real_tokens(batch, values.shape[:last]) if axes else None
    if real is None:
        return jnp.mean(values, axis=axes)
    real = real.reshape(real.shape + (1,) * trailing)
    return jnp.sum(jnp.where(real, values, 0), axis=axes) / jnp.maximum(jnp.sum(real, axis=axes), 1)


def real_tokens(batch: Mapping[str, Array], shape: tuple[int, ...]) -> Array | None:
    """Return a Boolean mask `[batch, length]`, True at tokens and False at padding.

    Args:
        batch: the arrays of the batch, by field; the mask is made from `attention_mask`.
        shape: the shape `(batch, length)` that `attention_mask` must have.

    Returns:
        The mask, or None if the batch has no `attention_mask` or one of another shape.
    """
    real = batch.get("attention_mask")
    return None if real is None or real.shape != shape else real != 0


def mask_padding(states: Array, batch: Mapping[str, Array]) -> Array:
    """Set hidden states `[batch, length, ...]` to zero at padding tokens, where the batch's `attention_mask` is 0.

    States without the axes `[batch, length]` of the mask, and states of a batch without a mask, are returned unchanged.
    """
    real = real_tokens(batch, states.shape[:2]) if states.ndim > 2 else None  # `[batch, width]` has no tokens
    return states if real is None else jnp.where(real.reshape(real.shape + (1,) * (states.ndim - 2)), states, 0)


def unit(x: Array, axis: int = -1) -> Array:
    """Normalise vectors to L2 norm 1 along an axis, in float32 or wider; a zero vector stays zero, with gradient 0."""
    x = precise(x)
    square = jnp.sum(x**2, axis=axis, keepdims=True)
    zero = square == 0  # selected twice: the gradient of a root at 0 is infinite, and 0 * inf is NaN
    return x * jnp.where(zero, 0.0, 1 / jnp.sqrt(jnp.where(zero, 1.0, square)))


def select_teacher[T](teachers: Sequence[T], number: int) -> T:
    """Return the entry of one teacher from a sequence that has one entry per teacher, such as outputs or parameters.

    Args:
        teachers: the entries, in the order of the teachers in the config.
        number: index of the teacher; a negative index counts from the end.

    Raises:
        ValueError: there is no teacher with this index.
    """
    if not -len(teachers) <= number < len(teachers):
        raise ValueError(f"there is no teacher {number}; the config has {len(teachers)}, numbered from 0")
    return teachers[number]
