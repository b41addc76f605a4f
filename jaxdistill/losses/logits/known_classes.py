"""Known classes: leave the classes that the teacher lacks out of the student's softmax too, in another loss.

    s_c -> -inf where the teacher's logit of class c is -inf, before the other loss

A teacher that lacks classes of the data (`teachers.NAME.classes = (0, -1, 1)`) gives them the logit -inf. Without this
term, soft targets teach the student that these classes are impossible. With it they say nothing about them, so that
other terms, such as `class_graph`, can place these classes. With a teacher that knows all classes, nothing changes.

Config: objective.kd.term = "known_classes(loss=kd(temperature=4.0))"
When: the teacher knows some of the student's classes, and the student learns the others from elsewhere.
Checked: eight losses equal the same of the known classes alone, in value and gradient.
No paper: a teacher and a student with other classes are usual, and papers drop the classes from the data.
"""

from dataclasses import replace

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Signals
from jaxdistill.losses.term import on_signals, precise


@losses.register
def known_classes(loss: Term) -> Term:
    """Build a term that applies another loss only to the classes whose teacher logit is not -inf (known classes).

    The student's logits of all other classes are set to -inf too, so that these classes have probability 0 and no
    gradient. Several teachers are fused first. A class is then known if at least one teacher knows it; if the fusion
    averages logits, all teachers must know it.

    Args:
        loss: a divergence, such as `kd(temperature=4.0)`, `reverse_kl()` or `jsd()`, also in `standardized(...)`, or
            `logit_mse`.

    Raises:
        ValueError: `loss` reads no teacher, such as `cross_entropy`, which is infinite at a label of an unknown class;
            or, when the loss is computed, a teacher's outputs come from a cache of its largest logits, in which all
            other classes have a probability.
    """
    if "teacher" not in loss.needs:
        raise ValueError("the loss does not say that it needs a teacher; give a divergence, such as kd()")

    def masked(signals: Signals) -> Signals:
        all_teachers = (signals.teacher, *signals.teachers)
        if any(each is None or each.sparse is not None for each in all_teachers):
            raise ValueError(
                "a cache of the largest logits does not say which classes its teacher lacks; keep all logits"
            )
        student = precise(signals.student.logits)
        known = signals.teacher.logits != -jnp.inf
        return replace(signals, student=replace(signals.student, logits=jnp.where(known, student, -jnp.inf)))

    return on_signals(loss, masked)._replace(linear=False)
