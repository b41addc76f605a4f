"""Skew reverse KL (DistiLLM): reverse KL to a mixture of teacher and student, finite for masked classes.

Ko et al., DistiLLM, 2024 (arxiv.org/abs/2402.03898). With p = softmax(t / T) of the teacher's logits t,
q = softmax(s / T) of the student's logits s, and sg for `stop_gradient`:

    v1   T^2 KL(q || (1 - a) p + a q)                a = 0.1
    v2   T^2 KL(q || (1 - a) p + a sg(q))

Both are published and have the same value. DistiLLM's code has the divergence (v1). DistiLLM-2
(arxiv.org/abs/2503.07067) holds the student's part of the mixture constant (v2), so that the gradient in the student is
not the gradient of the value; the `stop_gradient` here follows that paper. The gradient in the teacher is complete in
both versions.

A class that the teacher masks with -inf costs `q log(1 / a)`, at most 2.3 nats at a = 0.1. Unlike `reverse_kl`, this
loss needs no exception for such a class. DistiLLM-2 also chooses `a` for each sequence, and computes this loss on the
student's samples and the skew KL on the teacher's. Here the two losses are separate terms, each on the stream (source
of batches) that the config sets.

Config: objective.skew_reverse_kl.term = "skew_reverse_kl(alpha=0.1)"
Mean: over tokens (`reduction="token"`) in DistiLLM (d47e77f, distillm/losses.py, line 94). DistiLLM-2 has
`reduction="text"` (fe4cf9b, src/distillm_trainer.py, lines 1233 and 1347).
When: language models on text sampled from the student; on fixed text, beside `skew_kl`.
Checked: against published code (DistiLLM and DistiLLM-2), in value and gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.softmax import has_many_classes, sum_over_classes
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.logits.jsd import log_mixture
from jaxdistill.losses.logits.skew_kl import require_between_0_and_1, skew_divergence
from jaxdistill.losses.logits.temperature import softened
from jaxdistill.losses.term import precise


def skew_reverse_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    alpha: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute KL(q || (1 - alpha) p + alpha q) over the classes, without the factor T^2.

    p and q are the teacher's and the student's softmax(logits / temperature).
    """
    return skew_divergence(teacher, student, alpha, temperature)


def detached_skew_reverse_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    alpha: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute KL(q || (1 - alpha) p + alpha sg(q)) over the classes, without the factor T^2; sg is `stop_gradient`.

    p and q are the teacher's and the student's softmax(logits / temperature).
    """

    def of_class(p: Array, q: Array, log_p: Array, log_q: Array) -> Array:
        support = log_q != -jnp.inf
        log_q, log_p = jnp.where(support, log_q, 0.0), jnp.where(support, log_p, 0.0)
        constant_log_q = jax.lax.stop_gradient(log_q)
        log_m = constant_log_q + log_mixture(1 - alpha, log_p - constant_log_q)
        return jnp.where(support, q, 0.0) * (log_q - log_m)

    student, teacher = precise(student), precise(teacher)
    if has_many_classes(student):
        return sum_over_classes(of_class, teacher, student, temperature)
    log_q, log_p = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    return jnp.sum(of_class(jnp.exp(log_p), jnp.exp(log_q), log_p, log_q), axis=-1)


@losses.register
def skew_reverse_kl(
    alpha: float = 0.1, version: Literal["v1", "v2"] = "v1", temperature: Scalar = 1.0, scale_t2: bool = True
) -> Term:
    """Build the skew reverse KL loss term T^2 KL(q || (1 - alpha) p + alpha q), per example or token.

    p and q are the teacher's and the student's softmax(logits / T). Several teachers are first combined into one by the
    config's fusion, such as `average()`.

    Args:
        alpha: the student's share in the mixture, above 0 and below 1. (At 0, the loss would be that of `reverse_kl`.)
        version: "v1" differentiates the loss completely; "v2" takes q in the mixture as a constant (`stop_gradient`).
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes; the published code has
            neither T nor T^2.

    Raises:
        ValueError: `alpha` is out of range, or the temperature is not positive.
    """
    require_between_0_and_1(alpha)
    divergence_of = skew_reverse_divergence if version == "v1" else detached_skew_reverse_divergence

    def values(signals: Signals) -> Array:
        return divergence_of(signals.student.logits, signals.teacher.logits, alpha, signals.temperature)

    return softened(values, temperature, scale_t2)
