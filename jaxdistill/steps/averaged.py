"""Averaged teacher: the student learns from a running mean of what it was itself.

Tarvainen and Valpola, Mean Teachers Are Better Role Models, 2017 (arxiv.org/abs/1703.01780), algorithm of section 2.

A        <- S
for each batch:
    S        <- optimizer(grad_S L(S, sg(A)))               # beside the teacher as it was
    every so many steps:
        m    <- min(momentum, 1 - 1 / (n + 1))              # n-th time: a plain mean, until the moving one forgets more
        A    <- m A + (1 - m) S                             # of the student as it is now; statistics as parameters

Until its first move the teacher is the student itself, from which nothing is learned. With `momentum=0` it is the
student of some steps ago: moved at the end of every task, that is learning without forgetting (Li and Hoiem, 2016,
arxiv.org/abs/1606.09282), whose teacher is the student before the task.

The paper shows student and teacher unlike noise of one image; here both see the batch as it is augmented, and the
student alone has dropout. The teacher runs as in evaluation. What it became is a row of the report.

Config: step = "averaged(momentum=0.99)"; teachers.mean.model = "mlp(widths=(128,), classes=10)", the student's own;
    objective.kd.term = "kd(temperature=1.0)"
When: no teacher is at hand, few labels and many rows without one; and for a student that is to forget slowly.
Checked: three updates by hand; who moves first; the mean of equals is one of them, and no gradient reaches it.
Experiment: `experiments/peers` (no gain on 500 digits), `experiments/continual` (learning without forgetting).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.registry import steps
from jaxdistill.core.schedules import Scalar, as_schedule
from jaxdistill.core.types import NO_VARIABLES, Array, Model, Objective, PyTree, Step, Variables
from jaxdistill.losses.term import one_of
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import report


@steps.register
def averaged(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    momentum: Scalar = 0.99,
    every: int = 1,
    teacher: int = 0,
) -> Step:
    """The student learns from its own average, which takes the place of one teacher; it is the state `average`.

    Args:
        student, teachers, objective, optimizer: given by the config.
        momentum: what the average keeps of itself, from 0 to 1; a number or a schedule.
        every: steps from one of its moves to the next.
        teacher: whose place it takes; that one is the student's network. The others are frozen.

    Raises:
        ValueError: a number is out of range, there is no such teacher, or it is another network than the student.
    """
    keep = as_schedule(momentum)
    if not 0 <= keep.low <= keep.high <= 1 or every < 1:
        raise ValueError(f"momentum lies from 0 to 1, every is 1 or more; got {keep.low:g} to {keep.high:g}, {every}")
    one_of(teachers, teacher)
    parts = learner(student, teachers, objective, optimizer)

    def evolve_teachers(params, state, frozen):
        found = list(frozen)
        found[teacher] = state["average"]
        return tuple(found)

    def init(key, frozen, batch, start=NO_VARIABLES):
        ts = parts.init(key, frozen, batch, start)
        own = Variables(ts.params["student"], ts.state["student"])
        first = jax.tree.map(jnp.copy, _alike(own, frozen[teacher]))
        return replace(ts, state=ts.state | {"average": first})

    def update(ts, frozen, batch):
        teaching = evolve_teachers(ts.params, ts.state, frozen)
        gradient, means, state = parts.gradient(ts, teaching, batch, objective.weights(ts.step))
        new = parts.descend(ts, gradient, state)
        now = _alike(Variables(new.params["student"], new.state["student"]), frozen[teacher])
        m = jnp.minimum(keep(ts.step), 1 - 1 / (new.step // every + 1))
        m = jnp.where(new.step < every, 0, jnp.where(new.step % every == 0, m, 1))
        new = replace(new, state=new.state | {"average": mean(ts.state["average"], now, m)})
        return new, report(means, objective.total(means, ts.step), gradient)

    return Step(
        init,
        update,
        objective.streams,
        evolve_teachers=evolve_teachers,
        trained_teachers=frozenset({teacher % len(teachers)}),
    )


def mean(old: PyTree, new: PyTree, kept: Array) -> PyTree:
    """`kept old + (1 - kept) new`, in the type of the old; what is no float is taken as it is now."""

    def each(a, b):
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return b
        return (kept * a + (1 - kept) * b).astype(a.dtype)

    return jax.tree.map(each, old, new)


def _alike(own: Variables, teacher: Variables) -> Variables:
    """The student's values that the teacher has too.

    Raises:
        ValueError: it has others.
    """
    wanted, found = (jax.tree.map(jnp.shape, dict(values.params)) for values in (teacher, own))
    if wanted != found or not set(teacher.state) <= set(own.state):
        raise ValueError("an averaged teacher is the student's own network; give it the model of the student")
    return Variables(own.params, {name: own.state[name] for name in teacher.state})
