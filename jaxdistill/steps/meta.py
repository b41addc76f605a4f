"""Meta distillation: a quiz tells the teacher how to teach, through the update that its student makes of it.

Zhou, Xu and McAuley, BERT Learns to Teach: Knowledge Distillation with Meta Learning, 2022 (arxiv.org/abs/2106.04570),
algorithm 1; the hypergradient of Maclaurin, Duvenaud and Adams, 2015 (arxiv.org/abs/1502.03492).

for each batch, and a batch of the quiz:
    S'       <- S
    K times, on K parts of the batch:
        S'   <- S' - inner_lr grad_S' L(S', T)              # plain descent; T is not held constant in it
    T        <- optimizer(grad_T CE(S'(quiz), y))           # one step of inner_lr: -inner_lr (d2 L / dT dS)' grad CE
    S        <- optimizer(grad_S L(S, sg(T)))               # on the whole batch, beside the teacher as it is now

T is whatever `learns` names: the teachers, a factor on every term's weight, one on the temperature of all terms. The
factors are kept as logarithms that begin at 0. No part of T is ever trained by the loss that it shapes. Teachers run
as in evaluation: their statistics stay.

The K steps are formed again when they are differentiated, so that the activations of one of them exist at a time, and K
copies of the student. The log has `quiz/loss`, of S', and `quiz/slope`, the norm of T's gradient: 0 if nothing passes.

The plain control is `tuned_teacher`, which trains the teacher on the quiz itself; look at it before claiming a gain.

Begin with small rates: an inner one at which the pilot overshoots, or a teacher that outruns its student, diverges.

Config: step = "meta(inner_lr=0.01)"; streams.quiz.split = "train[90%:]", with data.train = "train[:90%]";
    roles.teachers.rate = 0.0001
When: a few labels that can be trusted and a teacher, weights or a temperature that cannot.
Checked: hypergradients against finite differences in float64 and the closed form; K steps against the unrolled.
Experiment: `experiments/meta` (a corrupted teacher: 73 % trusted, 89 mended, and 89 by the plain control).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Model, Objective, PyTree, Step, Variables
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import look, observe, own_key, report
from jaxdistill.steps.quiz import ahead, begun, evolved, examined

Taught = Literal["teachers", "weights", "temperature"]


@steps.register
def meta(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learns: tuple[Taught, ...] = ("teachers",),
    inner_steps: int = 1,
    inner_lr: float = 0.1,
) -> Step:
    """The student learns from what a quiz, the stream `quiz` with labels, teaches; each of it is a role of that name.

    Args:
        student, teachers, objective, optimizer: given by the config.
        learns: what the quiz teaches: "teachers", "weights", "temperature".
        inner_steps: K; it divides the batch.
        inner_lr: rate of these steps.

    Raises:
        ValueError: nothing learns, or a number is out of range; when it is initialised, no teacher has parameters, or
            the batch does not divide.
    """
    if not learns or inner_steps < 1 or inner_lr <= 0:
        given = f"learns={learns}, inner_steps={inner_steps}, inner_lr={inner_lr}"
        raise ValueError(f"learns names something, inner_steps is 1 or more, inner_lr above 0; got {given}")
    real, inner = (learner(student, teachers, objective, optimizer, _tempered(see)) for see in (observe, look))

    def init(key, frozen, batch, start=NO_VARIABLES):
        first = {
            "teachers": lambda: begun(frozen),
            "weights": lambda: {name: jnp.zeros(()) for name in objective.terms},
            "temperature": lambda: jnp.zeros(()),
        }
        _parts({name: batch[name] for name in objective.streams}, inner_steps)
        return real.init(key, frozen, batch, start, Variables({role: first[role]() for role in learns}, {}))

    def weights(params, step):
        factors = params.get("weights", {})
        return {k: w * jnp.exp(factors[k]) if factors else w for k, w in objective.weights(step).items()}

    def quizzed(taught, ts, frozen, batch):
        params = ts.params | taught

        @partial(jax.checkpoint, prevent_cse=False)  # in a scan nothing is merged
        def descend(pilot, part):
            now, (number, rows) = params | {"student": pilot.params}, part
            at = replace(ts, params=now, state=pilot.state, key=jax.random.fold_in(ts.key, number))
            gradient, _, state = inner.gradient(at, evolved(params, frozen), rows, weights(params, ts.step))
            moved = jax.tree.map(lambda p, g: p - inner_lr * g, pilot.params, gradient["student"])
            return Variables(moved, ts.state | state), None

        rows = _parts({name: batch[name] for name in objective.streams}, inner_steps)
        begin = Variables(params["student"], ts.state)
        pilot, _ = jax.lax.scan(descend, begin, (jnp.arange(inner_steps), rows))
        return examined(student, pilot._replace(state=pilot.state["student"]), batch["quiz"], own_key(ts))

    def update(ts, frozen, batch):
        taught: dict[str, PyTree] = {role: ts.params[role] for role in learns}
        slope, quiz = jax.grad(quizzed, has_aux=True)(taught, ts, frozen, batch)
        slope = psum(slope)
        taught = ahead(real, ts, slope)
        now, chosen = replace(ts, params=ts.params | taught), weights(taught, ts.step)
        gradient, means, state = real.gradient(now, evolved(taught, frozen), batch, chosen)
        gradient = gradient | slope
        new = real.descend(ts, gradient, state)
        metrics = report(means, objective.total(means, ts.step), gradient, chosen if "weights" in taught else {})
        return replace(new, params=new.params | taught), metrics | _watched(quiz, slope, taught)

    return Step(init, update, objective.streams | {"quiz"})


def _watched(quiz: Mean, slope: PyTree, taught: Mapping[str, PyTree]) -> dict[str, Mean]:
    """What the log says of the quiz beside the student's own loss."""
    one = jnp.ones(())
    found = {"quiz/loss": quiz, "quiz/slope": Mean(optax.tree.norm(slope), one)}
    factor = taught.get("temperature")
    return found if factor is None else found | {"temperature/factor": Mean(jnp.exp(factor), one)}


def _tempered(see: Callable[..., Any]) -> Callable[..., Any]:
    """Looks as `see` does, with the learned factor on all temperatures, if one is learned."""

    def seen(student, teachers, params, *args, **watch):
        signals, state = see(student, teachers, params, *args, **watch)
        if "temperature" in params:
            factor = jnp.exp(params["temperature"])
            signals = {stream: replace(each, temperature=factor) for stream, each in signals.items()}
        return signals, state

    return seen


def _parts(batch: PyTree, count: int) -> PyTree:
    """`[rows, ...] -> [count, rows / count, ...]`, each part of every count-th row: so all devices have some of it.

    Raises:
        ValueError: the rows do not divide.
    """

    def each(x):
        if x.shape[0] % count:
            raise ValueError(f"inner_steps={count} does not divide a batch of {x.shape[0]} rows; change either")
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    return jax.tree.map(each, batch)
