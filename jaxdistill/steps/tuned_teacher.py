"""A teacher tuned on the quiz, and then plain distillation: the control of the steps in which a quiz teaches.

Own: the plain thing to do with a quiz. Hinton et al., 2015 (arxiv.org/abs/1503.02531) is its second half.

for each of the first `updates` batches of the quiz:
    T        <- optimizer(grad_T CE(T(quiz), y))            # each teacher alone; the student waits
for each batch after them:
    S        <- optimizer(grad_S L(S, sg(T)))               # the teachers stay as they are

The log has `quiz/loss`,
the mean of the teachers'. They run as in evaluation: their statistics stay.

Config: step = "tuned_teacher(updates=100)"; streams.quiz.split = "train[90%:]", with data.train = "train[:90%]";
    roles.teachers.rate = 0.0001
When: a few labels that can be trusted and a teacher that cannot: before `meta` and `pseudo_labels`, and beside them.
Checked: teacher and student move in their own phase alone, to the bit; after it, as `offline` beside the tuned teacher.
Experiment: `experiments/meta` (beside meta).
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Model, Objective, Step, Variables
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import own_key, report
from jaxdistill.steps.quiz import begun, evolved, examined


@steps.register
def tuned_teacher(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    updates: int = 100,
) -> Step:
    """The teachers learn from the stream `quiz`, with labels, and then the student from them; they are a role.

    Args:
        student, teachers, objective, optimizer: given by the config.
        updates: of the teachers; they are steps of the run, of which the student gets the others.

    Raises:
        ValueError: `updates` is below 0; when it is initialised, no teacher has parameters.
    """
    if updates < 0:
        raise ValueError(f"updates is 0 or more; got {updates}")
    parts = learner(student, teachers, objective, optimizer)

    def init(key, frozen, batch, start=NO_VARIABLES):
        return parts.init(key, frozen, batch, start, Variables({"teachers": begun(frozen)}, {}))

    def quizzed(kept, ts, frozen, batch):
        values, key = evolved({"teachers": kept}, frozen), own_key(ts)
        found = [examined(teacher, v, batch["quiz"], key) for teacher, v in zip(teachers, values, strict=True)]
        shares, means = zip(*found, strict=True)
        return sum(shares), Mean(sum(mean.sum for mean in means), sum(mean.count for mean in means))

    def in_turn(tuning, new, old):
        chosen = {role: tuning == (role == "teachers") for role in new}
        return {role: jax.tree.map(partial(jnp.where, chosen[role]), new[role], old[role]) for role in new}

    def update(ts, frozen, batch):
        tuning, weights = ts.step < updates, objective.weights(ts.step)
        slope, quiz = jax.grad(quizzed, has_aux=True)(ts.params["teachers"], ts, frozen, batch)
        gradient, means, state = parts.gradient(ts, evolved(ts.params, frozen), batch, weights)
        gradient = in_turn(tuning, gradient | {"teachers": psum(slope)}, optax.tree.zeros_like(ts.params))
        new = parts.descend(ts, gradient, state)
        metrics = report(means, objective.total(means, ts.step), gradient)
        # momentum and decay move without a gradient, too
        return replace(new, params=in_turn(tuning, new.params, ts.params)), metrics | {"quiz/loss": quiz}

    return Step(init, update, objective.streams | {"quiz"})
