"""Reverse KL divergence (MiniLLM): KL(student || teacher), which is mode-seeking.

Gu et al., MiniLLM, 2023 (arxiv.org/abs/2306.08543), computed over the full vocabulary, as in Ko et al., DistiLLM, 2024
(arxiv.org/abs/2402.03898). With the student's logits s, the teacher's logits t and the temperature T:

    T^2 KL(softmax(s / T) || softmax(t / T))

The loss weights classes by the student's own probability, so the student gives up modes that it cannot match.

The divergence is infinite where the teacher's logit is -inf and the student's is not. Here such a class is left out of
the student's softmax, adds nothing and gets no gradient. The published code leaves out only the summand, and the
student's probability still includes the class. The published sum can fall below 0, and is lowest for a student that
puts all probability on masked classes.

Config: objective.reverse_kl.term = "reverse_kl(temperature=1.0)"
Mean: over tokens (`reduction="token"`), as in DistiLLM (d47e77f, distillm/losses.py, line 23) and MiniLLM (LMOps
4f2a9de, minillm/minillm/losses.py, line 105). TRL's MiniLLM divides by all positions, padding too (f2cd577,
trl/experimental/minillm/minillm_trainer.py, lines 278 to 283 and 366).
When: generative students much smaller than their teacher: better right on a few modes than vague on all.
Checked: against published code (DistiLLM), in value and gradient.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.temperature import softened


def reverse_kl_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute KL(softmax(student / T) || softmax(teacher / T)) over the classes, without the factor T^2.

    Classes whose teacher logit is -inf are left out of both distributions.
    """
    return kl_divergence(teacher, jnp.where(teacher == -jnp.inf, -jnp.inf, student), temperature)


@losses.register
def reverse_kl(temperature: Scalar = 1.0, scale_t2: bool = True) -> Term:
    """Build the reverse KL loss term T^2 KL(softmax(s / T) || softmax(t / T)), per example or token.

    s and t are the student's and the teacher's logits. Several teachers are first combined into one by the config's
    fusion, such as `average()`.

    Args:
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes; the published code has
            neither T nor T^2.
    """

    def values(signals: Signals) -> Array:
        return reverse_kl_divergence(signals.student.logits, signals.teacher.logits, signals.temperature)

    return softened(values, temperature, scale_t2)
