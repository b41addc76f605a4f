"""The mean of several teachers: of their probabilities (the mixture), or of their logits (the geometric mean).

The mean of forward KLs to several teachers is, up to a constant, the KL to the mean of their probabilities, not of
their logits. The mixture is taken at the term's temperature; mixing first and softening afterwards was 33 % off in
the gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.losses.term import precise
from jaxdistill.registry import fusions
from jaxdistill.types import Array, Fusion, Outputs


def mixture_logits(
    logits: Float[Array, "teachers *batch classes"],
    weights: Float[Array, "teachers ..."],
    temperature: Float[Array, ""] | float,
) -> Float[Array, "*batch classes"]:
    """Logits z with softmax(z / T) = sum_k w_k softmax(t_k / T); the weights, of teachers or also of rows, sum to 1."""
    log_p = jax.nn.log_softmax(precise(logits) / temperature)
    weights = weights.reshape(weights.shape + (1,) * (log_p.ndim - weights.ndim))
    masked = jnp.all(log_p == -jnp.inf, axis=0)  # by every teacher: selected first, the gradient of log 0 is NaN
    mixed = jax.nn.logsumexp(jnp.where(masked, 0.0, log_p), axis=0, b=weights)
    return jnp.where(masked, -jnp.inf, temperature * mixed)


@fusions.register
def average(of: Literal["probabilities", "logits"] = "probabilities", weights: tuple[float, ...] = ()) -> Fusion:
    """The weighted mean of all teachers.

    Args:
        of: "probabilities" or "logits".
        weights: one for each teacher, normalised to sum to 1; equal ones if empty.
    """
    if any(weight < 0 for weight in weights) or (weights and sum(weights) == 0):
        raise ValueError(f"weights must be at least 0 and not all 0; got {weights}")

    def apply(params, state, signals, *, key):
        count = len(signals.teachers)
        if weights and len(weights) != count:
            raise ValueError(f"{len(weights)} weights for {count} teachers")
        heard = [(w, t.logits) for w, t in zip(weights or (1.0,) * count, signals.teachers, strict=True) if w > 0]
        shares = jnp.asarray([weight for weight, _ in heard]) / sum(weight for weight, _ in heard)
        logits = jnp.stack([logits for _, logits in heard])  # of weight 0 nothing is heard, for 0 * NaN is NaN
        if of == "probabilities":
            return Outputs(mixture_logits(logits, shares, signals.temperature)), state
        return Outputs(jnp.tensordot(shares, precise(logits), axes=1)), state

    return Fusion(lambda key, signals: ({}, {}), apply)
