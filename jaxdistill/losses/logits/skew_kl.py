"""Skew KL (DistiLLM): forward KL to a mixture of student and teacher, which bounds the gradient.

Ko et al., DistiLLM, 2024 (arxiv.org/abs/2402.03898). With p = softmax(t / T) of the teacher's logits t,
q = softmax(s / T) of the student's logits s, and the entropy H:

    v2   T^2 KL(p || a p + (1 - a) q)                a = 0.1
    v1   T^2 [KL(p || a p + (1 - a) q) + H(p)]

Both are published and have the same gradient in the student. DistiLLM's code has the cross-entropy (v1), DistiLLM-2's
(arxiv.org/abs/2503.07067) the divergence (v2). They differ if the teacher is trained: H(p) rewards a confident teacher.
v1 is not 0 where the student equals the teacher. A class that the teacher masks with -inf adds nothing.

DistiLLM-2 also chooses `a` for each sequence from the distance between the models; here it is a number.

Config: objective.skew_kl.term = "skew_kl(alpha=0.1)"
Mean: over tokens (`reduction="token"`) in DistiLLM (d47e77f, distillm/losses.py, line 77). DistiLLM-2 has
`reduction="text"` (fe4cf9b, src/distillm_trainer.py, lines 1233 and 1347).
When: language models, instead of `kd` if classes with almost no student probability make the gradient of `kd` explode.
Checked: against published code (DistiLLM and DistiLLM-2), in value and gradient.
"""

from typing import Literal

import jax
from jaxtyping import Float

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.softmax import has_many_classes, sum_over_classes
from jaxdistill.core.types import Array, Signals
from jaxdistill.losses.logits.jsd import kl_to_mixture, kl_to_mixture_of_class
from jaxdistill.losses.logits.temperature import softened
from jaxdistill.losses.task.cross_entropy import entropy
from jaxdistill.losses.term import precise


def skew_divergence(
    student: Float[Array, "*batch classes"],
    teacher: Float[Array, "*batch classes"],
    alpha: float,
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*batch"]:
    """Compute KL(p || alpha p + (1 - alpha) q) over the classes, without the factor T^2.

    p and q are the teacher's and the student's softmax(logits / temperature).
    """
    student, teacher = precise(student), precise(teacher)
    if has_many_classes(student):
        return sum_over_classes(kl_to_mixture_of_class(1 - alpha), teacher, student, temperature)
    log_q, log_p = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    return kl_to_mixture(log_p, log_q, 1 - alpha)


@losses.register
def skew_kl(
    alpha: float = 0.1, version: Literal["v1", "v2"] = "v2", temperature: Scalar = 1.0, scale_t2: bool = True
) -> Term:
    """Build the skew KL loss term T^2 KL(p || alpha p + (1 - alpha) q), per example or token.

    p and q are the teacher's and the student's softmax(logits / T). Several teachers are first combined into one by the
    config's fusion, such as `average()`.

    Args:
        alpha: the teacher's share in the mixture, above 0 and below 1. (At 0, the loss would be that of `kd`.)
        version: "v2" is the divergence above; "v1" adds the teacher's entropy H(p).
        temperature: T, a positive number or a schedule over the training steps.
        scale_t2: multiply the loss by T^2, so that its gradient keeps its size when T changes; the published code has
            neither T nor T^2.

    Raises:
        ValueError: `alpha` is out of range, or the temperature is not positive.
    """
    require_between_0_and_1(alpha)

    def values(signals: Signals) -> Array:
        teacher = signals.teacher.logits
        divergence = skew_divergence(signals.student.logits, teacher, alpha, signals.temperature)
        return divergence + entropy(teacher, signals.temperature) if version == "v1" else divergence

    return softened(values, temperature, scale_t2)


def require_between_0_and_1(alpha: float) -> None:
    """Require that 0 < alpha < 1, for the share of one model in a mixture of student and teacher.

    Raises:
        ValueError: `alpha` is out of range.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha}. For alpha = 0 use kd or reverse_kl")
