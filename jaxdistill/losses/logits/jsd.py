"""Generalised Jensen-Shannon divergence: from the forward KL to the reverse one by a number.

Agarwal et al., GKD, 2023 (arxiv.org/abs/2306.13649). With P = softmax(t / T), Q = softmax(s / T), M = b P + (1 - b) Q:

    T^2 [b KL(P || M) + (1 - b) KL(Q || M)];    b = 0: T^2 KL(P || Q);    b = 1: T^2 KL(Q || P)

That jumps at its ends: the sum tends to 0 there, and the KL is put in its place. So a weight that suits one b suits no
other. The normalised form, divided by b (1 - b), is continuous:

    T^2 [KL(P || M) / (1 - b) + KL(Q || M) / b]

Both are finite between the ends where a teacher's logit is -inf; at b = 1 such a class is left out, see `reverse_kl`.

Config: objective.jsd.term = "jsd(beta=0.5)"
When: language models, above all on the student's own samples; b is swept, and .1, .5 and .9 are what papers try.
Checked: published code (TRL's GKD) at b = 0, .5 and 1; the normalised form by hand, and against both KLs at its ends.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.reverse_kl import reverse_kl_divergence
from jaxdistill.losses.term import precise, softened


def log_mixed(share: float, difference: Float[Array, "..."]) -> Float[Array, "..."]:
    """log((1 - share) + share e^difference), for a share between 0 and 1, and close to either of them."""
    return jnp.logaddexp(math.log1p(-share), math.log(share) + difference)


def kl_to_mixture(
    log_p: Float[Array, "*batch classes"], log_q: Float[Array, "*batch classes"], share: float
) -> Float[Array, "*batch"]:
    """KL(P || (1 - share) P + share Q) of log-probabilities. A class of P's probability 0 adds nothing.

    Between 0 and 1 it is finite wherever Q is 0.
    """
    has = log_p != -jnp.inf  # selected BEFORE the difference, which is NaN where both are -inf
    difference = jnp.where(has, log_q, 0.0) - jnp.where(has, log_p, 0.0)
    return -jnp.sum(jnp.exp(log_p) * log_mixed(share, difference), axis=-1)


def generalized_jsd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    beta: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """B KL(P || M) + (1 - b) KL(Q || M), and at the ends the KLs that the paper puts there; without T^2."""
    scale = beta * (1 - beta) if 0 < beta < 1 else 1.0
    return scale * normalized_jsd(student, teacher, beta, temperature)


def normalized_jsd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    beta: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """KL(P || M) / (1 - b) + KL(Q || M) / b, which tends to KL(P || Q) and KL(Q || P) at the ends; without T^2."""
    if beta == 0:
        return kl_divergence(student, teacher, temperature)
    if beta == 1:
        return reverse_kl_divergence(student, teacher, temperature)
    log_q, log_p = (jax.nn.log_softmax(precise(logits) / temperature) for logits in (student, teacher))
    return kl_to_mixture(log_p, log_q, 1 - beta) / (1 - beta) + kl_to_mixture(log_q, log_p, beta) / beta


@losses.register
def jsd(beta: float = 0.5, normalized: bool = False, temperature: Scalar = 1.0, scale_t2: bool = True) -> Term:
    """Generalised Jensen-Shannon divergence from the fused teacher.

    Args:
        beta: from 0, the forward KL, to 1, the reverse one.
        normalized: divide by `beta (1 - beta)` between the ends, so that the value does not jump there.
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2, so that the gradient keeps its size; published code does not.

    Raises:
        ValueError: `beta` is out of range.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta lies between 0 and 1; got {beta}")
    divergence_of = normalized_jsd if normalized else generalized_jsd

    def values(signals: Signals) -> Array:
        return divergence_of(signals.student.logits, signals.teacher.logits, beta, signals.temperature)

    return softened(values, temperature, scale_t2)
