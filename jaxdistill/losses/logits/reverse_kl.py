"""Reverse KL: the student is judged where it puts its own probability, and gives up what it cannot match.

Gu et al., MiniLLM, 2023 (arxiv.org/abs/2306.08543), over the full vocabulary, as Ko et al., DistiLLM, 2024
(arxiv.org/abs/2402.03898), have it.

    T^2 KL(softmax(s / T) || softmax(t / T))

Where the teacher's logit is -inf and the student's is not, this is infinite. Here the student is then compared over the
classes that the teacher has: such a class is left out of its softmax, adds nothing and gets no gradient. Published code
leaves out the addend alone, and the student's probability is still divided among all classes: the sum falls below 0,
and is least for a student that puts everything where the teacher has nothing.

Config: objective.reverse_kl.term = "reverse_kl(temperature=1.0)"
When: generative students much smaller than their teacher, which had better be right on a few modes than vague on all.
Checked: published code (DistiLLM), in value and gradient.
"""

import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.term import softened


def reverse_kl_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """KL(student || teacher) of softened distributions, over the classes that the teacher has, without T^2."""
    return kl_divergence(teacher, jnp.where(teacher == -jnp.inf, -jnp.inf, student), temperature)


@losses.register
def reverse_kl(temperature: Scalar = 1.0, scale_t2: bool = True) -> Term:
    """Reverse KL to the fused teacher.

    Args:
        temperature: number or schedule, positive.
        scale_t2: multiply by T^2, so that the gradient keeps its size; published code has neither.
    """

    def values(signals: Signals) -> Array:
        return reverse_kl_divergence(signals.student.logits, signals.teacher.logits, signals.temperature)

    return softened(values, temperature, scale_t2)
