"""Meta pseudo labels: the teacher labels, and learns from what its labels were worth to the student.

Pham, Dai, Xie, Luong and Le, Meta Pseudo Labels, 2021 (arxiv.org/abs/2003.10580), algorithm 1.

for each batch, whose labels are not read, and a batch of the quiz, which has some:
    y        <- drawn from T(x), for each row
    S'       <- optimizer(grad_S L(S(x), y))                # whatever terms the config has; its labels are y
    h        <- CE(S(quiz)) - CE(S'(quiz))                  # above 0: the labels helped
    T        <- optimizer(grad_T (h CE(T(x), y) + supervised CE(T(quiz))))
    S        <- S'

To the first order h is the paper's product of gradients: L_old - L_new = lr grad L_new . grad L(y). It is taken as a
difference, as the authors' code does; that code has L_new - L_old, with which a teacher forgets the labels that
helped.

The log has `quiz/loss`, of S, and `quiz/gain`, h. The teacher runs as in evaluation; the paper's further loss, of
consistency under augmentation, is none of this step's.

Config: step = "pseudo_labels(supervised=1.0)"; objective.cross_entropy.weight = 1.0;
    streams.quiz.split = "train[:5%]", with data.train = "train[5%:]"; roles.teachers.rate = 0.0001
When: few labels, many rows without one, and a teacher that is to go on learning.
Checked: by hand: a step's h, its sign, and that the teacher moves towards labels that helped and from those that hurt.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum, row_keys
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean, of_label, shared_mean
from jaxdistill.core.types import NO_VARIABLES, Model, Objective, Step, Variables
from jaxdistill.losses.term import precise
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import look, own_key, report
from jaxdistill.steps.quiz import ahead, begun, evolved, examined


@steps.register
def pseudo_labels(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    supervised: float = 1.0,
) -> Step:
    """The student learns labels that its (fused) teachers draw; these are the role `teachers`, and learn from a quiz.

    Args:
        student, teachers, objective, optimizer: given by the config.
        supervised: weight of the teachers' own loss on the stream `quiz`, beside what their labels were worth.

    Raises:
        ValueError: `supervised` is below 0; when it is initialised, no teacher has parameters.
    """
    if supervised < 0:
        raise ValueError(f"supervised is 0 or more; got {supervised}")
    parts = learner(student, teachers, objective, optimizer)

    def init(key, frozen, batch, start=NO_VARIABLES):
        return parts.init(key, frozen, batch, start, Variables({"teachers": begun(frozen)}, {}))

    def log_shares(kept, ts, frozen, batch, key):
        models, fusion = jax.random.split(key)
        values, watch = evolved({"teachers": kept}, frozen), {"step": ts.step, "key": models}
        signals, _ = look(student, teachers, ts.params, ts.state, values, batch, ("train",), **watch)
        fused: Any = objective.fuse(ts.params, ts.state, signals["train"], key=fusion)[0].teacher
        return jax.nn.log_softmax(precise(fused.logits))

    def update(ts, frozen, batch):
        # of their own: a fusion that draws a teacher for a row would draw the class of it by the same numbers
        kept, (draw, key, quiz) = ts.params["teachers"], jax.random.split(own_key(ts), 3)
        shares = log_shares(kept, ts, frozen, batch, key)
        label = jax.vmap(jax.random.categorical)(row_keys(draw, shares.shape[0]), shares)
        labelled = batch | {"train": batch["train"] | {"label": label}}
        gradient, means, state = parts.gradient(ts, evolved(ts.params, frozen), labelled, objective.weights(ts.step))

        values = Variables(ts.params["student"], ts.state["student"])
        after = values._replace(params=ahead(parts, ts, {"student": gradient["student"]})["student"])
        old, new = (examined(student, v, batch["quiz"], quiz)[1] for v in (values, after))
        h = old.compute() - new.compute()

        def worth(kept):
            told = of_label(log_shares(kept, ts, frozen, batch, key), label)
            share, _ = shared_mean(-told, batch["train"]["mask"])
            taught = zip(teachers, evolved({"teachers": kept}, frozen), strict=True)
            own = sum(examined(teacher, v, batch["quiz"], quiz)[0] for teacher, v in taught)
            return h * share + supervised * own

        gradient = gradient | {"teachers": psum(jax.grad(worth)(kept))}
        watched = {"quiz/loss": old, "quiz/gain": Mean(h, jnp.ones(()))}
        metrics = report(means, objective.total(means, ts.step), gradient)
        return parts.descend(ts, gradient, state), metrics | watched

    return Step(init, update, objective.streams | {"quiz"})
