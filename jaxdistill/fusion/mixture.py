"""Mix teachers into one: weight them, and average their probabilities or their logits."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.types import Array, Key, Outputs, Params, Signals, State
from jaxdistill.losses.term import precise

MixtureSpace = Literal["probabilities", "logits"]


def mixture_logits(
    logits: Float[Array, "teachers *batch classes"],
    weights: Float[Array, "teachers ..."],
    temperature: Float[Array, ""] | float,
) -> Float[Array, "*batch classes"]:
    """Compute the logits z of a mixture of distributions: `softmax(z / T) = sum_k w_k softmax(t_k / T)`.

    Args:
        logits: the teachers' logits t_k.
        weights: the weights w_k, `[teachers]` or `[teachers, *batch]`, which sum to 1 over teachers.
        temperature: the temperature T.
    """
    log_p = jax.nn.log_softmax(precise(logits) / temperature)
    weights = weights.reshape(weights.shape + (1,) * (log_p.ndim - weights.ndim))
    masked = jnp.all((log_p == -jnp.inf) | (weights == 0), axis=0)  # select first: the gradient of log 0 is NaN
    log_mixture = jax.nn.logsumexp(jnp.where(masked, 0.0, log_p), axis=0, b=jnp.where(masked, 1.0, weights))
    return jnp.where(masked, -jnp.inf, temperature * log_mixture)


def present_mask(signals: Signals) -> Bool[Array, "teachers ..."]:
    """Return a boolean mask, `[teachers, *batch]`, that is True where a teacher may teach a row (example or token).

    All teachers are present, unless the batch has the field `present`, `[*batch, teachers]`. A 0 in this field marks an
    absent teacher, for example one that was not trained on the language of the row.

    Args:
        signals: outputs of the teachers, the batch and its mask.

    Raises:
        ValueError: the field `present` has another shape.
    """
    count = len(signals.teachers)
    if "present" not in signals.batch:
        return jnp.ones((count, *signals.mask.shape), bool)
    is_present = signals.batch["present"]
    if is_present.shape != (*signals.mask.shape, count):
        raise ValueError(
            f"present is {list(is_present.shape)}, needed {[*signals.mask.shape, count]}: (*batch, teachers)"
        )
    return jnp.moveaxis(is_present != 0, -1, 0)


def teacher_logits(signals: Signals) -> Float[Array, "teachers *batch classes"]:
    """Stack the logits of all teachers, `[teachers, *batch, classes]`; absent teachers (see `present_mask`) get 0.

    Logits of an absent teacher may be NaN, and NaN times a weight of 0 would still be NaN.

    Args:
        signals: outputs of the teachers, and the batch.

    Raises:
        ValueError: a teacher has another tokenizer than the student.
    """
    if any(teacher.spans is not None for teacher in signals.teachers):
        cure = "choose one by fusion='single(teacher=0)'; the terms gold and uld choose their teacher themselves"
        raise ValueError(f"a teacher with another tokenizer than the student cannot be mixed; {cure}")
    stacked = jnp.stack([jnp.asarray(teacher.logits) for teacher in signals.teachers])
    return jnp.where(present_mask(signals)[..., None], stacked, 0)


def normalise_weights(
    weights: Float[Array, "teachers ..."], is_present: Bool[Array, "teachers ..."]
) -> Float[Array, "teachers ..."]:
    """Normalise weights over the present teachers, `w_k / sum_j w_j`; absent teachers get the weight 0.

    If the weights of all present teachers are 0, these teachers get equal weights. NaN weights stay NaN, so that the
    run stops with an error.

    Args:
        weights: weights of the teachers, not negative, `[teachers, *batch]`.
        is_present: True where the teacher is present for the row (example or token), `[teachers, *batch]`.
    """
    masked = jnp.where(is_present, weights, 0.0)
    total = jnp.sum(masked, axis=0)
    equal = is_present / jnp.maximum(jnp.sum(is_present, axis=0), 1)
    return jnp.where(total == 0, equal, masked / jnp.where(total == 0, 1.0, total))


def mix(signals: Signals, weights: Float[Array, "teachers ..."], of: MixtureSpace = "probabilities") -> Outputs:
    """Average the teachers' probabilities or logits with given weights w_k, at the temperature T in `signals`.

    A teacher with the weight 0 has no effect, even if its logits are NaN. If no teacher is present for a row (example
    or token), the average is uniform over classes.

    Args:
        signals: outputs of the teachers, the batch and the temperature.
        weights: weight of each teacher, `[teachers]` or `[teachers, *batch]`; the weights of the teachers that are
            present for a row are normalised to sum to 1.
        of: the space of the average. "probabilities" gives `sum_k w_k softmax(t_k / T)`, with logits t_k of teacher k
            and temperature T; "logits" gives `sum_k w_k t_k`.
    """
    is_present = present_mask(signals)
    weights = weights.reshape(weights.shape + (1,) * (is_present.ndim - weights.ndim))
    weights = normalise_weights(jnp.broadcast_to(weights, is_present.shape), is_present)
    used_logits = jnp.where((weights > 0)[..., None], teacher_logits(signals), 0)
    all_absent = ~jnp.any(is_present, axis=0)
    if of == "logits":
        logits = _mean_logits(used_logits, weights)
    else:
        mixture_weights = jnp.where(all_absent, 1 / len(weights), weights)
        logits = mixture_logits(used_logits, mixture_weights, signals.temperature)
    return Outputs(jnp.where(all_absent[..., None], 0.0, logits), weights=weights)


def _mean_logits(logits: Array, weights: Array) -> Array:
    """Compute the weighted mean of logits over teachers; -inf where a teacher with a positive weight has -inf."""
    masked = logits == -jnp.inf  # select first: the gradient in the weights would be infinite
    mean = jnp.sum(weights[..., None] * jnp.where(masked, 0.0, precise(logits)), axis=0)
    return jnp.where(jnp.any(masked, axis=0), -jnp.inf, mean)


def fixed_weights(weights: tuple[float, ...]) -> Callable[[Signals], Array]:
    """Return a function `signals -> weights` that returns the same weights of the teachers, `[teachers]`, for all rows.

    Args:
        weights: weight of each teacher, in the order of the config; an empty tuple means equal weights.

    Raises:
        ValueError: weights are negative or all 0. The returned function raises it too, if the number of weights is not
            the number of teachers.
    """
    if any(weight < 0 for weight in weights) or (weights and sum(weights) == 0):
        raise ValueError(f"weights must be at least 0 and not all 0; got {weights}")

    def weigh(signals: Signals) -> Array:
        count = len(signals.teachers)
        if weights and len(weights) != count:
            raise ValueError(
                f"{len(weights)} weights for {count} teachers; give one for each, in the order of the config"
            )
        return jnp.asarray(weights or (1,) * count, float)

    return weigh


def mixture_fusion(weigh: Callable[[Signals], Array], of: MixtureSpace = "probabilities") -> Fusion:
    """Build a fusion of teachers without trained parameters, from a function that computes the weights of the teachers.

    Args:
        weigh: function `signals -> weights`. The weights are `[teachers]` or `[teachers, *batch]` and not negative; the
            fusion normalises them to sum to 1.
        of: the space of the average. "probabilities" gives `sum_k w_k softmax(t_k / T)`, with logits t_k of teacher k
            and temperature T; "logits" gives `sum_k w_k t_k`.
    """

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Outputs, State]:
        return mix(signals, weigh(signals), of), state

    return Fusion(lambda key, signals: ({}, {}), apply)
