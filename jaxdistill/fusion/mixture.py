"""The common case of a fusion: weights for the teachers, and the mixture of what they say."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.types import Array, Fusion, Outputs, Signals
from jaxdistill.losses.term import precise

Of = Literal["probabilities", "logits"]


def mixture_logits(
    logits: Float[Array, "teachers *batch classes"],
    weights: Float[Array, "teachers ..."],
    temperature: Float[Array, ""] | float,
) -> Float[Array, "*batch classes"]:
    """Logits z with softmax(z / T) = sum_k w_k softmax(t_k / T); the weights, of teachers or also of rows, sum to 1."""
    log_p = jax.nn.log_softmax(precise(logits) / temperature)
    weights = weights.reshape(weights.shape + (1,) * (log_p.ndim - weights.ndim))
    masked = jnp.all((log_p == -jnp.inf) | (weights == 0), axis=0)  # selected first: the gradient of log 0 is NaN
    mixed = jax.nn.logsumexp(jnp.where(masked, 0.0, log_p), axis=0, b=jnp.where(masked, 1.0, weights))
    return jnp.where(masked, -jnp.inf, temperature * mixed)


def present(signals: Signals) -> Bool[Array, "teachers ..."]:
    """Which teachers speak of which rows, `[teachers, *batch]`; all of them, unless the batch has `present`.

    `present` is `[*batch, teachers]` and not 0 for a teacher that is there: one that knows a language, a domain, a day.
    """
    count = len(signals.teachers)
    if "present" not in signals.batch:
        return jnp.ones((count, *signals.mask.shape), bool)
    there = signals.batch["present"]
    if there.shape != (*signals.mask.shape, count):
        raise ValueError(f"present is {list(there.shape)}, needed {[*signals.mask.shape, count]}: (*batch, teachers)")
    return jnp.moveaxis(there != 0, -1, 0)


def spoken(signals: Signals) -> Float[Array, "teachers *batch classes"]:
    """What every teacher says; 0 of rows where it is absent, for in a gradient a NaN would survive a weight of 0.

    Raises:
        ValueError: one of them reads other tokens than the student.
    """
    if any(teacher.spans is not None for teacher in signals.teachers):
        cure = "name one by fusion='single(teacher=0)'; gold and uld name theirs themselves"
        raise ValueError(f"teachers that read other tokens than the student have no mean; {cure}")
    said = jnp.stack([jnp.asarray(teacher.logits) for teacher in signals.teachers])
    return jnp.where(present(signals)[..., None], said, 0)


def shares(weights: Float[Array, "teachers ..."], there: Bool[Array, "teachers ..."]) -> Float[Array, "teachers ..."]:
    """The weights of teachers that are there, made to sum to 1; equal ones where all of these weigh nothing.

    NaN stays, and stops a run: a gate that diverges is no average.
    """
    kept = jnp.where(there, weights, 0.0)
    total = jnp.sum(kept, axis=0)
    even = there / jnp.maximum(jnp.sum(there, axis=0), 1)
    return jnp.where(total == 0, even, kept / jnp.where(total == 0, 1.0, total))


def mixed(signals: Signals, weights: Float[Array, "teachers ..."], of: Of = "probabilities") -> Outputs:
    """The teachers' mixture, at the signals' temperature; what weighs nothing is not heard, NaN included.

    Where no teacher is present, all classes are as likely.
    """
    there = present(signals)
    weights = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (there.ndim - weights.ndim)), there.shape)
    weights = shares(weights, there)
    heard = jnp.where((weights > 0)[..., None], spoken(signals), 0)
    nobody = ~jnp.any(there, axis=0)
    if of == "logits":
        logits = _mean_logits(heard, weights)
    else:
        logits = mixture_logits(heard, jnp.where(nobody, 1 / len(weights), weights), signals.temperature)
    return Outputs(jnp.where(nobody[..., None], 0.0, logits), weights=weights)


def _mean_logits(heard: Array, weights: Array) -> Array:
    """The weighted mean, -inf where any teacher that weighs something says so."""
    masked = heard == -jnp.inf  # selected first: the gradient in a weight would be infinite
    mean = jnp.sum(weights[..., None] * jnp.where(masked, 0.0, precise(heard)), axis=0)
    return jnp.where(jnp.any(masked, axis=0), -jnp.inf, mean)


def fixed(weights: tuple[float, ...]) -> Callable[[Signals], Array]:
    """Weights that a config gives to the teachers, `[teachers]`, in their order; (): all alike.

    Raises:
        ValueError: they are negative or all 0; of signals, that there is another number of teachers.
    """
    if any(weight < 0 for weight in weights) or (weights and sum(weights) == 0):
        raise ValueError(f"weights must be at least 0 and not all 0; got {weights}")

    def weigh(signals: Signals) -> Array:
        count = len(signals.teachers)
        if weights and len(weights) != count:
            raise ValueError(f"{len(weights)} weights for {count} teachers; give one for each, in their order")
        return jnp.asarray(weights or (1,) * count, jnp.float32)

    return weigh


def mixing(weigh: Callable[[Signals], Array], of: Of = "probabilities") -> Fusion:
    """A fusion that learns and remembers nothing: `weigh` gives `[teachers]` or `[teachers, *batch]`, not negative."""

    def apply(params, state, signals, *, key):
        return mixed(signals, weigh(signals), of), state

    return Fusion(lambda key, signals: ({}, {}), apply)
