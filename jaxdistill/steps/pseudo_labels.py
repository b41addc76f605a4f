"""Meta pseudo labels: the teacher labels the examples, and learns from how much its labels help the student.

Pham, Dai, Xie, Luong and Le, Meta Pseudo Labels, 2021 (arxiv.org/abs/2003.10580), algorithm 1. T is the teacher, S the
student, L the config's loss. The quiz is a second source of batches: held-out examples with labels.

    for each batch, whose labels are not used, and a batch of the quiz, which has labels:
        y        <- drawn from T(x), for each row
        S'       <- optimizer(grad_S L(S(x), y))                # with all terms of the config; their labels are y
        h        <- CE(S(quiz)) - CE(S'(quiz))                  # positive: the labels helped
        T        <- optimizer(grad_T (h CE(T(x), y) + supervised CE(T(quiz))))
        S        <- S'

To first order, h is the paper's inner product of gradients: L_old - L_new = lr grad L_new . grad L(y), with L_old and
L_new the quiz losses of S and S'. The authors' code takes a difference, too, but as L_new - L_old, with which a teacher
unlearns the labels that helped.

The log has `quiz/loss`, the loss of S, and `quiz/gain`, which is h. The teacher runs in evaluation mode. The paper's
additional consistency loss under augmentation is not implemented.

Config: step = "pseudo_labels(supervised=1.0)"; objective.cross_entropy.weight = 1.0;
    streams.quiz.split = "train[:5%]", with data.train = "train[5%:]"; roles.teachers.rate = 0.0001
When: few examples have labels, and the teacher should be trained further.
Checked: by hand: h and its sign in one step; the teacher moves towards labels that helped and away from those that
    hurt.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxdistill.core.collectives import psum, row_keys
from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean, shared_mean, values_at_labels
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, Key, Params, TrainState, Variables
from jaxdistill.losses.term import precise
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import observe_with_gradients, step_key, step_metrics
from jaxdistill.steps.quiz import current_teachers, init_teacher_params, quiz_loss, update_roles


@steps.register
def pseudo_labels(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    supervised: float = 1.0,
) -> Step:
    """Build the meta pseudo labels step: the student learns from labels y drawn from the teachers' fused prediction.

        the teachers minimise   h CE(fused teacher, y) + supervised * sum over teachers of CE(teacher, quiz labels)

    h is the decrease of the student's cross-entropy on a quiz by one update with y, and CE is the cross-entropy. The
    quiz is a second source of labelled batches, the stream `quiz`. The teachers' params are stored as
    `TrainState.params["teachers"]`.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        supervised: weight of the teachers' cross-entropy on the quiz, 0 or more.

    Raises:
        ValueError: `supervised` is negative; when the train state is initialised, no teacher has parameters.
    """
    if supervised < 0:
        raise ValueError(f"supervised must be at least 0; got {supervised}")
    parts = learner(student, teachers, objective, optimizer)

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        return parts.init(key, frozen, batch, start, Variables({"teachers": init_teacher_params(frozen)}, {}))

    def teacher_log_probs(
        teacher_params: tuple[Params, ...], ts: TrainState, frozen: tuple[Variables, ...], batch: Batch, key: Key
    ) -> Float[Array, "*batch classes"]:
        models, fusion = jax.random.split(key)
        values, settings = current_teachers({"teachers": teacher_params}, frozen), {"step": ts.step, "key": models}
        signals, _ = observe_with_gradients(
            student, teachers, ts.params, ts.state, values, batch, ("train",), **settings
        )
        fused: Any = objective.fuse(ts.params, ts.state, signals["train"], key=fusion)[0].teacher
        return jax.nn.log_softmax(precise(fused.logits))

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        # separate keys: with one, a fusion that draws a teacher for each row would use the same random numbers
        teacher_params, (label_key, key, quiz_key) = ts.params["teachers"], jax.random.split(step_key(ts), 3)
        log_probs = teacher_log_probs(teacher_params, ts, frozen, batch, key)
        label = jax.vmap(jax.random.categorical)(row_keys(label_key, log_probs.shape[0]), log_probs)
        labelled = {**batch, "train": {**batch["train"], "label": label}}
        gradient, means, state = parts.gradient(
            ts, current_teachers(ts.params, frozen), labelled, objective.weights(ts.step)
        )

        before = Variables(ts.params["student"], ts.state["student"])
        after = before._replace(params=update_roles(parts, ts, {"student": gradient["student"]})["student"])
        old, new = (quiz_loss(student, v, batch["quiz"], quiz_key)[1] for v in (before, after))
        h = old.compute() - new.compute()

        def teacher_loss(teacher_params: tuple[Params, ...]) -> Float[Array, ""]:
            label_log_probs = values_at_labels(teacher_log_probs(teacher_params, ts, frozen, batch, key), label)
            loss, _ = shared_mean(-label_log_probs, batch["train"]["mask"])
            pairs = zip(teachers, current_teachers({"teachers": teacher_params}, frozen), strict=True)
            supervised_loss = sum(quiz_loss(teacher, v, batch["quiz"], quiz_key)[0] for teacher, v in pairs)
            return h * loss + supervised * supervised_loss

        gradient = gradient | {"teachers": psum(jax.grad(teacher_loss)(teacher_params))}
        quiz_metrics = {"quiz/loss": old, "quiz/gain": Mean(h, jnp.ones(()))}
        metrics = step_metrics(means, objective.total(means, ts.step), gradient)
        return parts.descend(ts, gradient, state), metrics | quiz_metrics

    return Step(init, update, objective.streams | {"quiz"})
