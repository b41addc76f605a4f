"""Meta distillation (MetaDistil): train the teacher by the quiz loss of the student after an update.

Zhou, Xu and McAuley, BERT Learns to Teach: Knowledge Distillation with Meta Learning, 2022 (arxiv.org/abs/2106.04570),
algorithm 1; the hypergradient of Maclaurin, Duvenaud and Adams, 2015 (arxiv.org/abs/1502.03492). The quiz is a second
source of batches: held-out examples with labels y. S is the student, L the config's loss, sg is `stop_gradient`.

    for each batch, and a batch of the quiz:
        S'       <- S
        K times, on K parts of the batch:
            S'   <- S' - inner_lr grad_S' L(S', T)              # plain gradient descent; T is not held constant
        T        <- optimizer(grad_T CE(S'(quiz), y))           # for K = 1: -inner_lr (d2 L / dT dS)' grad CE
        S        <- optimizer(grad_S L(S, sg(T)))               # on the whole batch, with the updated teacher

T is what `learns` names: the teachers, one factor on the weight of each loss term, or one factor on the temperature of
all terms. The factors are stored as logarithms that start at 0. T is never trained by the loss that it shapes. Teachers
run in evaluation mode: their running statistics do not change.

The K inner steps are rematerialised in the backward pass, so that the activations of one step and K copies of the
student exist at a time. The log has `quiz/loss`, the loss of S', and `quiz/slope`, the norm of T's gradient: 0 if no
gradient reaches T.

The simple control is `tuned_teacher`, which trains the teacher on the quiz directly. Compare with it before you claim a
gain.

Start with small rates. Training diverges if the inner rate overshoots, or if the teacher changes faster than the
student.

Config: step = "meta(inner_lr=0.01)"; streams.quiz.split = "train[90%:]", with data.train = "train[:90%]";
    roles.teachers.rate = 0.0001
When: a few labels are trustworthy, and the teacher, the weights or the temperature are not.
Checked: hypergradients against finite differences in float64 and the closed form; the K-step scan against a plain loop.
Experiment: `experiments/meta` (a corrupted teacher: 73 % frozen, 89 with meta, and 89 with the simple control).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxdistill.core.collectives import psum
from jaxdistill.core.interfaces import Model, Objective, Step
from jaxdistill.core.registry import steps
from jaxdistill.core.sums import Mean
from jaxdistill.core.types import NO_VARIABLES, Array, Batch, ByRole, Key, PyTree, Signals, State, TrainState, Variables
from jaxdistill.steps.learner import learner
from jaxdistill.steps.observe import RunModels, observe, observe_with_gradients, step_key, step_metrics
from jaxdistill.steps.quiz import current_teachers, init_teacher_params, quiz_loss, update_roles

Learned = Literal["teachers", "weights", "temperature"]


@steps.register
def meta(
    student: Model,
    teachers: tuple[Model, ...],
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learns: tuple[Learned, ...] = ("teachers",),
    inner_steps: int = 1,
    inner_lr: float = 0.1,
) -> Step:
    """Build the meta-distillation step: teachers, loss weights or temperature learn from the student's quiz loss.

    The quiz is a second source of labelled batches, the stream `quiz`. In each step, a copy of the student takes K
    updates on K parts of the batch, and the gradient of the copy's cross-entropy on the quiz trains what `learns`
    names. Then the student is trained on the batch.

    Args:
        student, teachers, objective, optimizer: the models, the losses with their weights, and the optimiser, built
            from the other keys of the config.
        learns: names of what the quiz trains: "teachers", the teachers' params; "weights", a factor on the weight of
            each loss; "temperature", one factor on the temperatures of all losses. Each is stored as the entry of this
            name in `TrainState.params`.
        inner_steps: number K of updates of the copy; it must divide the batch size.
        inner_lr: learning rate of the K updates of the copy.

    Raises:
        ValueError: `learns` is empty, or a number is out of range; when the train state is initialised, "teachers" are
            to be trained and none has parameters, or `inner_steps` does not divide the batch size.
    """
    if not learns:
        raise ValueError("learns is empty; name what is learned")
    if inner_steps < 1:
        raise ValueError(f"inner_steps={inner_steps} must be at least 1")
    if inner_lr <= 0:
        raise ValueError(f"inner_lr={inner_lr} must be above 0")
    outer, inner = (
        learner(student, teachers, objective, optimizer, _with_temperature_factor(run_models))
        for run_models in (observe, observe_with_gradients)
    )

    def init(key: Key, frozen: tuple[Variables, ...], batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        initial = {
            "teachers": lambda: init_teacher_params(frozen),
            "weights": lambda: {name: jnp.zeros(()) for name in objective.terms},
            "temperature": lambda: jnp.zeros(()),
        }
        _split_rows({name: batch[name] for name in objective.streams}, inner_steps)  # raises if it does not divide
        return outer.init(key, frozen, batch, start, Variables({role: initial[role]() for role in learns}, {}))

    def weights(params: ByRole, step: Array) -> dict[str, Array]:
        factors = params.get("weights", {})
        return {k: w * jnp.exp(factors[k]) if factors else w for k, w in objective.weights(step).items()}

    def loss_after_inner_steps(
        learned: dict[str, PyTree], ts: TrainState, frozen: tuple[Variables, ...], batch: Batch
    ) -> tuple[Array, Mean]:
        params = ts.params | learned

        @partial(jax.checkpoint, prevent_cse=False)  # a scan keeps XLA from merging its iterations
        def descend(pilot: Variables, part: tuple[Array, Batch]) -> tuple[Variables, None]:
            at_pilot, (number, rows) = params | {"student": pilot.params}, part
            inner_ts = replace(ts, params=at_pilot, state=pilot.state, key=jax.random.fold_in(ts.key, number))
            gradient, _, state = inner.gradient(
                inner_ts, current_teachers(params, frozen), rows, weights(params, ts.step)
            )
            new_params = jax.tree.map(lambda p, g: p - inner_lr * g, pilot.params, gradient["student"])
            return Variables(new_params, ts.state | state), None

        rows = _split_rows({name: batch[name] for name in objective.streams}, inner_steps)
        pilot_start = Variables(params["student"], ts.state)
        pilot, _ = jax.lax.scan(descend, pilot_start, (jnp.arange(inner_steps), rows))
        return quiz_loss(student, pilot._replace(state=pilot.state["student"]), batch["quiz"], step_key(ts))

    def update(ts: TrainState, frozen: tuple[Variables, ...], batch: Batch) -> tuple[TrainState, dict[str, Mean]]:
        learned: dict[str, PyTree] = {role: ts.params[role] for role in learns}
        hypergradient, quiz = jax.grad(loss_after_inner_steps, has_aux=True)(learned, ts, frozen, batch)
        hypergradient = psum(hypergradient)
        learned = update_roles(outer, ts, hypergradient)
        current, term_weights = replace(ts, params=ts.params | learned), weights(learned, ts.step)
        gradient, means, state = outer.gradient(current, current_teachers(learned, frozen), batch, term_weights)
        gradient = gradient | hypergradient
        new = outer.descend(ts, gradient, state)
        metrics = step_metrics(
            means, objective.total(means, ts.step), gradient, term_weights if "weights" in learned else {}
        )
        return replace(new, params=new.params | learned), metrics | _quiz_metrics(quiz, hypergradient, learned)

    return Step(init, update, objective.streams | {"quiz"})


def _quiz_metrics(quiz: Mean, gradient: PyTree, learned: Mapping[str, PyTree]) -> dict[str, Mean]:
    """Collect the metrics of the quiz (held-out labelled examples): loss, gradient norm and learned temperature factor.

    Args:
        quiz: the mean loss of the updated student on the quiz.
        gradient: the gradient of the quiz loss with respect to what is learned.
        learned: the learned params by name; `temperature`, if present, is the logarithm of the factor.
    """
    one = jnp.ones(())
    metrics = {"quiz/loss": quiz, "quiz/slope": Mean(optax.tree.norm(gradient), one)}
    factor = learned.get("temperature")
    return metrics if factor is None else metrics | {"temperature/factor": Mean(jnp.exp(factor), one)}


def _with_temperature_factor(run_models: RunModels) -> RunModels:
    """Wrap a function that runs the models, so that `Signals.temperature` is the learned factor, if there is one."""

    def run(
        student: Model,
        teachers: tuple[Model, ...],
        params: ByRole,
        state: ByRole,
        frozen: tuple[Variables, ...],
        batch: Batch,
        streams: Iterable[str],
        *,
        step: Array,
        key: Key,
    ) -> tuple[dict[str, Signals], State]:
        signals, student_state = run_models(
            student, teachers, params, state, frozen, batch, streams, step=step, key=key
        )
        if "temperature" in params:
            factor = jnp.exp(params["temperature"])
            signals = {stream: replace(each, temperature=factor) for stream, each in signals.items()}
        return signals, student_state

    return run


def _split_rows(batch: PyTree, count: int) -> PyTree:
    """Split a batch into `count` parts, `[rows, ...] -> [count, rows / count, ...]`.

    Part i has the rows i, i + count, i + 2 count, ..., so that all devices hold rows of each part.

    Raises:
        ValueError: `count` does not divide the number of rows.
    """

    def split(x: Array) -> Array:
        if x.shape[0] % count:
            raise ValueError(f"inner_steps={count} does not divide a batch of {x.shape[0]} rows; change one of them")
        return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)
