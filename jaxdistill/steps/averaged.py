"""Mean teacher: the student learns from a moving average of its own weights.

Tarvainen and Valpola, Mean Teachers Are Better Role Models, 2017 (arxiv.org/abs/1703.01780), algorithm of section 2.
With the student's weights S, the average A, the config's losses L, and sg for `stop_gradient`:

    A        <- S
    for each batch:
        S        <- optimizer(grad_S L(S, sg(A)))               # A is the average from before this update
        after every `every` steps:
            m    <- min(momentum, 1 - 1 / (n + 1))              # n-th update; a plain mean until m = momentum
            A    <- m A + (1 - m) S                             # S is the updated student; its state is averaged, too

Before the first update of the average, the teacher equals the student, from which nothing is learned. With
`momentum=0` the teacher is a copy of the student that is up to `every` steps old. If it is copied at the end of every
task, this is Learning without Forgetting (Li and Hoiem, 2016, arxiv.org/abs/1606.09282), whose teacher is the student
before the task.

The paper perturbs the input of student and teacher differently. Here both read the same augmented batch, and only the
student has dropout. The teacher runs in evaluation mode. The report of the run evaluates the final average, too.

Config: step = "averaged(momentum=0.99)"; teachers.mean.model = "mlp(widths=(128,), classes=10)", the student's model;
    objective.kd.term = "kd(temperature=1.0)"
When: there is no teacher, and only some of the examples have labels; or the student must forget slowly.
Checked: three updates by hand; the order of both updates; the mean of equal values; no gradient reaches the average.
Experiment: `experiments/peers` (no gain on 500 digits), `experiments/continual` (learning without forgetting).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.schedules import Scalar, as_schedule
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, ByRole, Key, PyTree, TrainState, Variables
from jaxdistill.losses.term import select_teacher
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import step_metrics


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
    """Build the mean-teacher training step: one teacher is a moving average of the student's weights.

    The average is stored as `TrainState.state["average"]`.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        momentum: m in average <- m average + (1 - m) student, from 0 to 1; a number or a schedule. The n-th update uses
            min(m, 1 - 1 / (n + 1)).
        every: number of training steps between two updates of the average.
        teacher: index of the teacher that the average replaces. Its model must be the student's. All other teachers are
            frozen.

    Raises:
        ValueError: a number is out of range, or there is no teacher with this index; when the train state is
            initialised, the teacher's model is not the student's.
    """
    schedule = as_schedule(momentum)
    if not 0 <= schedule.low <= schedule.high <= 1 or every < 1:
        raise ValueError(
            f"momentum must be from 0 to 1, every at least 1; got {schedule.low:g} to {schedule.high:g}, {every}"
        )
    select_teacher(teachers, teacher)
    parts = learner(student, teachers, objective, optimizer)

    def evolve_teachers(params: ByRole, state: ByRole, frozen: tuple[Variables, ...]) -> tuple[Variables, ...]:
        values = list(frozen)
        values[teacher] = state["average"]
        return tuple(values)

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        ts = parts.init(key, frozen, batch, start)
        average = jax.tree.map(jnp.copy, _averaged_values(_student_of(ts), frozen[teacher]))
        return replace(ts, state=ts.state | {"average": average})

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        current = evolve_teachers(ts.params, ts.state, frozen)
        gradient, means, state = parts.gradient(ts, current, batch, objective.weights(ts.step))
        new = parts.descend(ts, gradient, state)
        values = _averaged_values(_student_of(new), frozen[teacher])
        m = jnp.minimum(schedule(ts.step), 1 - 1 / (new.step // every + 1))
        m = jnp.where(new.step < every, 0, jnp.where(new.step % every == 0, m, 1))
        new = replace(new, state=new.state | {"average": moving_average(ts.state["average"], values, m)})
        return new, step_metrics(means, objective.total(means, ts.step), gradient)

    return Step(
        init,
        update,
        objective.streams,
        evolve_teachers=evolve_teachers,
        trained_teachers=frozenset({teacher % len(teachers)}),
    )


def moving_average(old: PyTree, new: PyTree, momentum: Array) -> PyTree:
    """Compute the moving average `momentum * old + (1 - momentum) * new` for each array of a pytree.

    The result has the dtype of `old`. Arrays of integers are copied from `new`.
    """

    def each(a: Array, b: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return b
        return (momentum * a + (1 - momentum) * b).astype(a.dtype)

    return jax.tree.map(each, old, new)


def _student_of(ts: TrainState) -> Variables:
    return Variables(ts.params["student"], ts.state["student"])


def _averaged_values(student: Variables, teacher: Variables) -> Variables:
    """Select the student's params, and those entries of the student's state that the teacher has, too.

    Raises:
        ValueError: student and teacher differ in their parameters, or the teacher has other state.
    """
    teacher_shapes, student_shapes = (jax.tree.map(jnp.shape, dict(values.params)) for values in (teacher, student))
    if teacher_shapes != student_shapes or not set(teacher.state) <= set(student.state):
        raise ValueError("the averaged teacher must have the student's model; set its model to student.model")
    return Variables(student.params, {name: student.state[name] for name in teacher.state})
