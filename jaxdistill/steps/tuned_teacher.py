"""Tuned teacher: fine-tune the teachers on labelled quiz examples, then distil. Control of `meta` and `pseudo_labels`.

No paper: the simplest use of a quiz. The second phase is that of Hinton et al., 2015 (arxiv.org/abs/1503.02531).

The quiz is a second source of batches: held-out examples with labels y. T is a teacher, S the student, L the config's
loss, CE the cross-entropy, and sg is `stop_gradient`.

    for each of the first `updates` batches of the quiz:
        T        <- optimizer(grad_T CE(T(quiz), y))            # each teacher alone; the student does not change
    for each batch after them:
        S        <- optimizer(grad_S L(S, sg(T)))               # the teachers do not change

The log has `quiz/loss`, the mean over the teachers. They run in evaluation mode: their running statistics do not
change.

Config: step = "tuned_teacher(updates=100)"; streams.quiz.split = "train[90%:]", with data.train = "train[:90%]";
    roles.teachers.rate = 0.0001
When: a few labels are trustworthy and the teacher is not: before `meta` and `pseudo_labels`, and as their control.
Checked: teacher and student change only in their phase, to the bit; then the same as `offline` with the tuned teacher.
Experiment: `experiments/meta` (compared with meta).
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool

from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, ByRole, Key, Params, PyTree, TrainState, Variables
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import step_key, step_metrics
from jaxdistill.steps.quiz import current_teachers, init_teacher_params, quiz_loss


@steps.register
def tuned_teacher(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    updates: int = 100,
) -> Step:
    """Build a training step that first fine-tunes the teachers on labelled examples, and then trains the student.

    The labelled examples are the stream (named source of batches) `quiz`. The teachers' params are stored as
    `TrainState.params["teachers"]`.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        updates: number of training steps that train the teachers. All later steps train the student.

    Raises:
        ValueError: `updates` is negative; when the train state is initialised, no teacher has parameters.
    """
    if updates < 0:
        raise ValueError(f"updates must be at least 0; got {updates}")
    parts = learner(student, teachers, objective, optimizer)

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        return parts.init(key, frozen, batch, start, Variables({"teachers": init_teacher_params(frozen)}, {}))

    def teachers_loss(
        teacher_params: tuple[Params, ...], ts: TrainState, frozen: tuple[Variables, ...], batch: Batch
    ) -> tuple[Array, Mean]:
        values, key = current_teachers({"teachers": teacher_params}, frozen), step_key(ts)
        losses = [quiz_loss(teacher, v, batch["quiz"], key) for teacher, v in zip(teachers, values, strict=True)]
        local_losses, means = zip(*losses, strict=True)
        return sum(local_losses), Mean(sum(mean.sum for mean in means), sum(mean.count for mean in means))

    def select_phase(tuning: Bool[Array, ""], new: ByRole, old: ByRole) -> dict[str, PyTree]:
        trained = {role: tuning == (role == "teachers") for role in new}
        return {role: jax.tree.map(partial(jnp.where, trained[role]), new[role], old[role]) for role in new}

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        tuning, weights = ts.step < updates, objective.weights(ts.step)
        teacher_gradient, quiz = jax.grad(teachers_loss, has_aux=True)(ts.params["teachers"], ts, frozen, batch)
        gradient, means, state = parts.gradient(ts, current_teachers(ts.params, frozen), batch, weights)
        gradient = select_phase(
            tuning, gradient | {"teachers": psum(teacher_gradient)}, optax.tree.zeros_like(ts.params)
        )
        new = parts.descend(ts, gradient, state)
        metrics = step_metrics(means, objective.total(means, ts.step), gradient)
        # momentum and weight decay change params even where the gradient is 0
        return replace(new, params=select_phase(tuning, new.params, ts.params)), metrics | {"quiz/loss": quiz}

    return Step(init, update, objective.streams | {"quiz"})
