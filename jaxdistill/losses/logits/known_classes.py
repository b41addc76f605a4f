"""Known classes: leave the classes that the teacher lacks out of the student's softmax too, in another loss.

    s_c -> -1e9 where the teacher's logit of class c is -inf, before the other loss

A teacher that lacks classes of the data (`teachers.NAME.classes = (0, -1, 1)`) gives them the logit -inf. Without this
term, soft targets teach the student that these classes are impossible. With it they say nothing about them, so that
other terms, such as `class_graph`, can place these classes. With a teacher that knows all classes, nothing changes.

Config: objective.kd.term = "known_classes(loss=kd(temperature=4.0))"
When: the teacher knows some of the student's classes, and the student learns the others from elsewhere.
Checked: `kd`, `reverse_kl` and `jsd` equal the divergence of the known classes alone, in value and gradient.
No paper: a teacher and a student with other classes are usual, and papers drop the classes from the data.
"""

from dataclasses import replace

import jax.numpy as jnp

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import NO_CANDIDATE, Array, Key, Params, Signals, State
from jaxdistill.losses.term import precise


@losses.register
def known_classes(loss: Term) -> Term:
    """Build a term that applies another loss to the classes that the teacher knows: its other logits are -inf.

    The student's logits of the other classes are replaced by -1e9, so that they have probability 0 and no gradient.
    Several teachers are fused first; a class that one of them knows is known.

    Args:
        loss: the loss to apply, such as `kd(temperature=4.0)`.

    Raises:
        ValueError: when the loss is computed, the teacher is a cache of its largest logits, in which all other classes
            have a probability.
    """

    def masked(signals: Signals) -> Signals:
        if signals.teacher is None or signals.teacher.sparse is not None:
            raise ValueError(
                "a cache of the largest logits does not say which classes its teacher lacks; keep all logits"
            )
        student = precise(signals.student.logits)
        known = signals.teacher.logits != -jnp.inf
        return replace(signals, student=replace(signals.student, logits=jnp.where(known, student, NO_CANDIDATE)))

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        return loss.init(key, masked(signals))

    def apply(
        params: Params, state: State, signals: Signals, *, key: Key
    ) -> tuple[Values | tuple[Values, Array], State]:
        return loss.apply(params, state, masked(signals), key=key)

    return loss._replace(init=init, apply=apply, linear=False, needs=loss.needs | {"teacher"})
