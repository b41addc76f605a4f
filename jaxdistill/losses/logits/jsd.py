"""Generalised Jensen-Shannon divergence (GKD): interpolates between the forward and the reverse KL.

Agarwal et al., GKD, 2023 (arxiv.org/abs/2306.13649). With P = softmax(t / T) of the teacher's logits t,
Q = softmax(s / T) of the student's logits s, and M = b P + (1 - b) Q:

    T^2 [b KL(P || M) + (1 - b) KL(Q || M)];    b = 0: T^2 KL(P || Q);    b = 1: T^2 KL(Q || P)

The loss is not continuous at both ends: the sum tends to 0 there, and the KL replaces it. A loss weight that suits one
b therefore does not suit another. The normalised form, divided by b (1 - b), is continuous:

    T^2 [KL(P || M) / (1 - b) + KL(Q || M) / b]

For 0 < b < 1 both forms are finite where a teacher's logit is -inf. At b = 1 such a class is left out, see
`reverse_kl`.

Config: objective.jsd.term = "jsd(beta=0.5)"
Mean: over tokens (`reduction="token"`) in TRL (f2cd577, trl/experimental/gkd/gkd_trainer.py, lines 301 to 317) and
DistiLLM (d47e77f, distillm/losses.py, lines 47 to 52). The paper (equation 2) has `reduction="text"`.
When: language models, above all on text sampled from the student. Sweep b; papers try .1, .5 and .9.
Checked: against published code (TRL's GKD) at b = 0, .5 and 1; the normalised form by hand, and against both KLs at its
ends.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.softmax import OfClass, has_many_classes, sum_over_classes
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.reverse_kl import reverse_kl_divergence
from jaxdistill.losses.logits.temperature import softened
from jaxdistill.losses.term import precise


def log_mixture(share: float, difference: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute log((1 - share) + share exp(difference)) for 0 < share < 1, accurately even if share is almost 0 or 1.

    With difference = log(q / p), this is log(m / p) for the mixture m = (1 - share) p + share q.
    """
    return jnp.logaddexp(math.log1p(-share), math.log(share) + difference)


def kl_to_mixture(
    log_p: Float[Array, "*batch classes"], log_q: Float[Array, "*batch classes"], share: float
) -> Float[Array, "*batch"]:
    """Compute KL(P || (1 - share) P + share Q) over the classes, for 0 < share < 1, from log P and log Q.

    A class with P = 0 adds nothing. The result is finite even if Q = 0 for some classes.
    """
    support = log_p != -jnp.inf  # select BEFORE the difference, which is NaN where both are -inf
    difference = jnp.where(support, log_q, 0.0) - jnp.where(support, log_p, 0.0)
    return -jnp.sum(jnp.exp(log_p) * log_mixture(share, difference), axis=-1)


def kl_to_mixture_of_class(share: float) -> OfClass:
    """Build the function of one class whose sum over the classes is KL(P || (1 - share) P + share Q), 0 < share < 1."""

    def of_class(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
        support = log_p != -jnp.inf
        difference = jnp.where(support, log_q, 0.0) - jnp.where(support, log_p, 0.0)
        return -p * log_mixture(share, difference)

    return of_class


def generalized_jsd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    beta: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute the generalised Jensen-Shannon divergence b KL(P || M) + (1 - b) KL(Q || M), without the factor T^2.

    P and Q are the teacher's and the student's softmax(logits / T), b is `beta`, and M = b P + (1 - b) Q. As in the
    paper, the value is KL(P || Q) at b = 0 and KL(Q || P) at b = 1.
    """
    scale = beta * (1 - beta) if 0 < beta < 1 else 1.0
    return scale * normalized_jsd(student, teacher, beta, temperature)


def normalized_jsd(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    beta: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute the normalised Jensen-Shannon divergence KL(P || M) / (1 - b) + KL(Q || M) / b, without the factor T^2.

    P and Q are the teacher's and the student's softmax(logits / T), b is `beta`, and M = b P + (1 - b) Q. The value is
    the limit KL(P || Q) at b = 0, and the limit KL(Q || P) at b = 1.
    """
    if beta == 0:
        return kl_divergence(student, teacher, temperature)
    if beta == 1:
        return reverse_kl_divergence(student, teacher, temperature)
    student, teacher = precise(student), precise(teacher)
    if not has_many_classes(student):
        log_q, log_p = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
        return kl_to_mixture(log_p, log_q, 1 - beta) / (1 - beta) + kl_to_mixture(log_q, log_p, beta) / beta
    of_p, of_q = kl_to_mixture_of_class(1 - beta), kl_to_mixture_of_class(beta)

    def of_class(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
        return of_p(p, q, log_p, log_q) / (1 - beta) + of_q(q, p, log_q, log_p) / beta

    return sum_over_classes(of_class, teacher, student, temperature)


@losses.register
def jsd(beta: float = 0.5, normalized: bool = False, temperature: Scalar = 1.0, scale_t2: bool = True) -> Term:
    """Build the generalised Jensen-Shannon loss term T^2 [b KL(P || M) + (1 - b) KL(Q || M)], per example or token.

    P and Q are the teacher's and the student's softmax(logits / T), b is `beta`, and M = b P + (1 - b) Q. The loss is
    T^2 KL(P || Q) for b = 0, and T^2 KL(Q || P) for b = 1. Several teachers are first combined into one by the config's
    fusion, such as `average()`.

    Args:
        beta: b, from 0 (forward KL) to 1 (reverse KL).
        normalized: for 0 < b < 1, divide the loss by b (1 - b), so that it is a continuous function of b.
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes; the published code does
            not.

    Raises:
        ValueError: `beta` is out of range, or the temperature is not positive.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie between 0 and 1; got {beta}")
    divergence_of = normalized_jsd if normalized else generalized_jsd

    def values(signals: Signals) -> Array:
        return divergence_of(signals.student.logits, signals.teacher.logits, beta, signals.temperature)

    return softened(values, temperature, scale_t2)
