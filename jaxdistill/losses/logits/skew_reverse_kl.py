"""Skew reverse KL: the reverse KL to a teacher that is mixed with a little of the student, finite where it has nothing.

Ko et al., DistiLLM, 2024 (arxiv.org/abs/2402.03898). With p = softmax(t / T), q = softmax(s / T):

    v1   T^2 KL(q || (1 - a) p + a q)                a = 0.1
    v2   T^2 KL(q || (1 - a) p + a sg(q))

Both are published and have the same value: DistiLLM's code has the divergence (v1), and DistiLLM-2's
(arxiv.org/abs/2503.07067) holds the student's part of the mixture fixed (v2), so that its gradient in the student is
not that of its value. The `stop_gradient` here is that paper's; the teacher's gradient is whole in both.

A class that the teacher masks with -inf costs `q log(1 / a)`, at most 2.3 nats where a = 0.1, and is no exception as it
is for `reverse_kl`. DistiLLM-2 also chooses `a` for each sequence, and computes this on the student's samples and the
skew KL on the teacher's; here both are terms, on whatever stream they are given.

Config: objective.skew_reverse_kl.term = "skew_reverse_kl(alpha=0.1)"
When: language models on the student's own samples; on fixed text beside `skew_kl`.
Checked: published code (DistiLLM and DistiLLM-2), in value and gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.logits.jsd import log_mixed
from jaxdistill.losses.logits.skew_kl import require_between_0_and_1, skew_divergence
from jaxdistill.losses.term import precise, softened


def skew_reverse_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    alpha: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """KL(q || (1 - alpha) p + alpha q), without T^2: `skew_divergence` with the roles exchanged."""
    return skew_divergence(teacher, student, alpha, temperature)


def detached_skew_reverse_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    alpha: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """KL(q || (1 - alpha) p + alpha sg(q)), without T^2."""
    log_q, log_p = (jax.nn.log_softmax(precise(logits) / temperature) for logits in (student, teacher))
    has = log_q != -jnp.inf
    log_q, log_p = jnp.where(has, log_q, 0.0), jnp.where(has, log_p, 0.0)
    held = jax.lax.stop_gradient(log_q)
    log_m = held + log_mixed(1 - alpha, log_p - held)
    return jnp.sum(jnp.where(has, jnp.exp(log_q), 0.0) * (log_q - log_m), axis=-1)


@losses.register
def skew_reverse_kl(
    alpha: float = 0.1, version: Literal["v1", "v2"] = "v1", temperature: Scalar = 1.0, scale_t2: bool = True
) -> Term:
    """Skew reverse KL to the fused teacher.

    Args:
        alpha: the student's share in the mixture, between 0 and 1; `reverse_kl` is its end at 0.
        version: "v1" for the divergence, "v2" with the student held fixed inside the mixture.
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2, so that the gradient keeps its size; published code has neither.

    Raises:
        ValueError: `alpha` is out of range.
    """
    require_between_0_and_1(alpha)
    divergence_of = skew_reverse_divergence if version == "v1" else detached_skew_reverse_divergence

    def values(signals: Signals) -> Array:
        return divergence_of(signals.student.logits, signals.teacher.logits, alpha, signals.temperature)

    return softened(values, temperature, scale_t2)
