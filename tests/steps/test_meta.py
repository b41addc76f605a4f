"""Tests of the steps `meta`, `pseudo_labels` and `tuned_teacher`: hypergradients, signs, and what learns when."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_close, assert_same
from perceptrons import CLASSES, KEY, WIDTH, counted, perceptron, rows, speak
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.collectives import row_keys
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model, Term
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Outputs, TrainState, Variables
from jaxdistill.steps import meta
from jaxdistill.steps.observe import observe, step_key

TERMS = {"kd": ("kd(temperature=2.0)", 0.75), "cross_entropy": ("cross_entropy", 0.25)}
ALL = "('teachers', 'weights', 'temperature')"


class World:
    """A step on two perceptrons, with plain descent at rate 1, so that params before minus after are the gradient."""

    def __init__(
        self,
        spec: str,
        *shape: int,
        chunks: int = 1,
        rates: dict[str, float] | None = None,
        terms: dict[str, WeightedTerm] | None = None,
        student: Model | None = None,
    ):
        shape = shape or (8,)
        self.models = student or perceptron(4, len(shape) > 1), perceptron(5, len(shape) > 1)
        student, teacher = self.models
        self.batch = {"train": rows(0, *shape), "quiz": rows(1, *shape)}
        terms = terms or {name: WeightedTerm(build_loss(term), weight) for name, (term, weight) in TERMS.items()}
        plain = registry.optimizers.build("sgd(momentum=0.0)", "")
        update = optimizer(plain, 1.0, roles={role: (plain, rate) for role, rate in (rates or {}).items()})
        minimised = objective(terms, registry.fusions["single"](), chunks)
        parsed = parse(spec, "")
        self.step = registry.steps.build(parsed._replace(args=(student, (teacher,), minimised, update)), "step")
        self.frozen = (Variables(*jax.jit(teacher.init)(jax.random.key(1), self.batch["train"])),)
        self.start = jax.jit(self.step.init)(KEY, self.frozen, self.batch)
        self.update = jax.jit(self.step.update)

    def after(self, start: TrainState | None = None, **batch) -> TrainState:
        return self.update(start or self.start, self.frozen, self.batch | batch)[0]

    def slope(self) -> dict:
        """Return the gradient of every role that the quiz trains."""
        after = self.after()
        taught = [role for role in ("teachers", "weights", "temperature") if role in after.params]
        return {role: difference(self.start.params[role], after.params[role]) for role in taught}


def difference(before, after):
    """Return `before - after` of each array, in numpy."""
    return jax.tree.map(np.subtract, before, after)


def product(a, b) -> float:
    """Return the inner product of two trees, in numpy."""
    return sum(jax.tree.leaves(jax.tree.map(np.vdot, a, b)))


@jax.jit
def drawn_like(tree):
    leaves, structure = jax.tree.flatten(tree)
    noise = [jax.random.normal(jax.random.fold_in(KEY, n), x.shape, x.dtype) for n, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, noise)


def norm(tree) -> float:
    return product(tree, tree) ** 0.5


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def learned_loss(student, taught, batch):
    """Compute by hand the loss that the student minimises."""
    temperature = 2.0 * jnp.exp(taught["temperature"])
    said, heard = speak(student, batch["image"]), speak(taught["teachers"][0], batch["image"])
    log_p, log_q = jax.nn.log_softmax(heard / temperature), jax.nn.log_softmax(said / temperature)
    kd = temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
    hard = optax.softmax_cross_entropy_with_integer_labels(said, batch["label"])
    terms = {"kd": 0.75 * kd, "cross_entropy": 0.25 * hard}
    return sum(jnp.exp(taught["weights"][name]) * counted(values, batch) for name, values in terms.items())


def quiz_loss(student, batch):
    return counted(
        optax.softmax_cross_entropy_with_integer_labels(speak(student, batch["image"]), batch["label"]), batch
    )


def unrolled(world: World, taught, steps: int, rate: float):
    """Compute the quiz loss of a copy of the student after `steps` updates, each on every `steps`-th row."""
    pilot = world.start.params["student"]
    for number in range(steps):
        part = {name: x[number::steps] for name, x in world.batch["train"].items()}
        slope = jax.grad(learned_loss)(pilot, taught, part)
        pilot = jax.tree.map(lambda p, g: p - rate * g, pilot, slope)
    return quiz_loss(pilot, world.batch["quiz"])


def test_hypergradients_agree_with_finite_differences_and_with_the_unrolled_steps(double, monkeypatch):
    world = World(f"meta(learns={ALL}, inner_steps=2, inner_lr=0.5)")
    taught = jax.device_get({role: world.start.params[role] for role in ("teachers", "weights", "temperature")})
    quiz = jax.jit(lambda taught: unrolled(world, taught, 2, 0.5))
    slope = world.slope()
    for role, own in taught.items():
        direction = jax.device_get(drawn_like(own))
        moved = lambda size, own=own, direction=direction: jax.tree.map(lambda x, d: x + size * d, own, direction)
        expected = (float(quiz(taught | {role: moved(1e-5)})) - float(quiz(taught | {role: moved(-1e-5)}))) / 2e-5
        assert abs(expected) > 1e-3
        np.testing.assert_allclose(product(slope[role], direction), expected, rtol=1e-6, err_msg=role)
    assert_close(slope, jax.jit(jax.grad(quiz))(taught), rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(jax, "checkpoint", lambda function, **_: function)
    assert_close(World(f"meta(learns={ALL}, inner_steps=2, inner_lr=0.5)").slope(), slope, rtol=1e-9, atol=1e-12)


def test_each_inner_step_draws_anew():
    """Check that the gradient of a loss weight is small if each of 64 inner steps draws the sign of the loss."""

    def slope(sign) -> float:
        def apply(params, state, signals, *, key):
            return sign(key) * signals.student.logits[:, 0], state

        term = WeightedTerm(Term(lambda key, signals: ({}, {}), apply, needs=frozenset({"teacher"})))
        spec = "meta(learns=('weights',), inner_steps=64, inner_lr=0.0001)"
        return float(World(spec, 64, terms={"kd": term}).slope()["weights"]["kd"])

    changing = slope(lambda key: jax.random.rademacher(key, ()).astype(jnp.float32))
    assert abs(changing) < 0.6 * abs(slope(lambda key: 1.0))


def test_each_inner_step_continues_the_running_statistics_of_the_one_before():
    def apply(params, state, batch, *, train, key):
        mean = batch["image"].mean(0)
        image = batch["image"] - (mean if train else state["mean"])
        return Outputs(speak(params, image)), {"mean": (state["mean"] + mean) / 2} if train else state

    student = Model(lambda key, batch: (perceptron(4).init(key, batch)[0], {"mean": jnp.zeros(WIDTH)}), apply)
    terms = {"cross_entropy": WeightedTerm(build_loss("cross_entropy"), 1.0)}
    world = World("meta(learns=('weights',), inner_steps=2, inner_lr=0.5)", terms=terms, student=student)
    pilot, mean, train, quiz = world.start.params["student"], jnp.zeros(WIDTH), *world.batch.values()
    for number in range(2):
        part = {name: x[number::2] for name, x in train.items()}
        own = part["image"].mean(0)
        slope = jax.jit(jax.grad(quiz_loss))(pilot, part | {"image": part["image"] - own})
        pilot, mean = jax.tree.map(lambda p, g: p - 0.5 * g, pilot, slope), (mean + own) / 2
    _, metrics = world.update(world.start, world.frozen, world.batch)
    expected = quiz_loss(pilot, quiz | {"image": quiz["image"] - mean})
    assert_close(metrics["quiz/loss"].compute(), expected, rtol=1e-5)


def test_one_inner_step_is_the_mixed_second_derivative(double):
    """Check against -inner_lr (d2 L / dT dS)' grad CE(quiz), with the whole matrix of second derivatives."""
    world = World("meta(inner_lr=0.5)")
    student, teacher = world.start.params["student"], world.start.params["teachers"][0]
    taught = lambda teacher: {"teachers": (teacher,), "temperature": 0.0, "weights": dict.fromkeys(TERMS, 0.0)}
    inner = jax.grad(lambda s, t: learned_loss(s, taught(t), world.batch["train"]))

    @jax.jit
    def derivatives(student, teacher):
        pilot = jax.tree.map(lambda p, g: p - 0.5 * g, student, inner(student, teacher))
        return jax.jacobian(inner, argnums=1)(student, teacher), jax.grad(quiz_loss)(pilot, world.batch["quiz"])

    mixed, outer = jax.device_get(derivatives(student, teacher))
    for name, found in world.slope()["teachers"][0].items():
        expected = -0.5 * sum(np.tensordot(outer[own], mixed[own][name], 2) for own in outer)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_with_a_stop_gradient_inside_nothing_reaches_the_teacher(monkeypatch):
    assert norm(World("meta").slope()) > 1e-3
    monkeypatch.setattr(meta, "observe_with_gradients", observe)
    assert norm(World("meta").slope()) == 0


@pytest.mark.slow
def test_the_hypergradient_passes_through_a_head_in_pieces(double):
    whole, pieces = (World("meta(inner_lr=0.5)", 4, 6, chunks=chunks).slope() for chunks in (1, 3))
    assert norm(whole) > 1e-3
    assert_close(pieces, whole, rtol=1e-6, atol=1e-9)


def test_a_teacher_that_does_not_learn_teaches_as_a_frozen_one_to_the_bit():
    still, plain = World("meta", rates={"teachers": 0.0}), World("offline")
    states = still.start, plain.start
    assert_same(states[0].params["student"], states[1].params["student"])
    for _ in range(3):
        states = still.after(states[0]), plain.after(states[1])
    assert_same(states[0].params["student"], states[1].params["student"])
    assert_same(states[0].params["teachers"][0], plain.frozen[0].params)


def test_the_student_hears_of_the_quiz_through_what_was_taught_alone():
    world = World(f"meta(learns={ALL})", rates={"teachers": 0.0, "weights": 0.0, "temperature": 0.0})
    assert_same(world.after().params["student"], world.after(quiz=rows(2, 8)).params["student"])


def test_the_student_learns_from_the_teacher_as_it_is_now():
    world = World(f"meta(learns={ALL})")
    after = world.after()
    slope = jax.jit(jax.grad(learned_loss))
    own = lambda state: {role: state.params[role] for role in ("teachers", "weights", "temperature")}
    before, now = (slope(world.start.params["student"], own(s), world.batch["train"]) for s in (world.start, after))
    moved = difference(world.start.params["student"], after.params["student"])
    assert_close(moved, now, rtol=1e-4, atol=1e-5)
    assert norm(difference(before, now)) > 1e-2
    silent = world.batch["quiz"] | {"mask": np.zeros(8, np.float32)}  # without a quiz, nothing trains these roles
    assert_same(own(world.after(quiz=silent)), own(world.start))


# Pseudo labels


def share_of(world: World, state: TrainState, label) -> float:
    """Return the teacher's mean log-probability of the labels, over rows that are not masked."""

    @jax.jit
    def share(params, batch):
        said = jax.nn.log_softmax(speak(params, batch["image"]))
        return counted(jnp.take_along_axis(said, label[:, None], -1)[:, 0], batch)

    return float(share(state.params["teachers"][0], world.batch["train"]))


@pytest.mark.parametrize("helps", [True, False])
def test_a_teacher_moves_towards_labels_that_helped_and_away_from_those_that_hurt(helps):
    """Check it with a quiz that has the labels which the teacher draws (`helps`), or other labels."""
    world = World("pseudo_labels(supervised=0.0)", rates={"student": 0.1})
    sure = jax.tree.map(
        lambda x: jnp.asarray(4 * np.asarray(x)), world.start.params["teachers"]
    )  # a confident teacher, whose soft targets agree with the labels that it draws
    start = replace(world.start, params=world.start.params | {"teachers": sure})
    image = world.batch["train"]["image"]

    @jax.jit
    def draw(start):
        shares = jax.nn.log_softmax(speak(sure[0], image).astype(jnp.float32))
        own, *_ = jax.random.split(step_key(start), 3)
        return jax.vmap(jax.random.categorical)(row_keys(own, len(image)), shares)

    drawn = draw(start)
    quiz = world.batch["train"] | {"label": drawn if helps else (drawn + 1) % CLASSES}
    after, metrics = world.update(start, world.frozen, world.batch | {"quiz": quiz})
    gain = float(metrics["quiz/gain"].compute())
    loss = jax.jit(quiz_loss)
    old, new = (float(loss(state.params["student"], quiz)) for state in (start, after))
    assert gain == pytest.approx(old - new, rel=1e-4)
    assert (gain > 0) is helps
    moved = share_of(world, after, drawn) - share_of(world, start, drawn)
    assert (moved > 0) is helps and abs(moved) > 1e-4


def test_what_labels_were_worth_is_the_papers_product_of_gradients():
    """Check, to first order, that the gain is grad CE(quiz) . (S - S'), with the student S before and S' after."""
    world = World("pseudo_labels(supervised=0.0)", rates={"student": 1e-3})
    after, metrics = world.update(world.start, world.frozen, world.batch)
    student = world.start.params["student"]
    moved = difference(student, after.params["student"])
    expected = product(jax.jit(jax.grad(quiz_loss))(student, world.batch["quiz"]), moved)
    assert float(metrics["quiz/gain"].compute()) == pytest.approx(float(expected), rel=2e-2)


def test_a_label_does_not_depend_on_which_teacher_was_drawn_to_say_it():
    """Check that teachers (0.9, 0.1) and (0.5, 0.5) label 0.7 of the rows 0; one key for both draws would give 0.5."""
    say = lambda *p: Model(
        lambda key, batch: ({"bias": jnp.log(jnp.asarray(p))}, {}),
        lambda params, state, batch, *, train, key: (
            Outputs(jnp.broadcast_to(params["bias"], (*batch["mask"].shape, 2))),
            state,
        ),
    )
    student, *teachers = models = say(0.9, 0.1), say(0.9, 0.1), say(0.5, 0.5)
    minimised = objective({"ce": WeightedTerm(build_loss("cross_entropy"))}, registry.fusions.build("sampled", ""))
    update = optimizer(registry.optimizers.build("sgd", ""), 0.1)
    step = registry.steps["pseudo_labels"](student, tuple(teachers), minimised, update)
    rows = {"mask": jnp.ones(4000), "label": jnp.zeros(4000, jnp.int32)}
    batch, frozen = {"train": rows, "quiz": rows}, tuple(Variables(*m.init(KEY, rows)) for m in models[1:])
    start = jax.jit(step.init)(KEY, frozen, batch)
    loss = float(jax.jit(step.update)(start, frozen, batch)[1]["terms/ce"].compute())
    zeros = (loss + np.log(0.1)) / (np.log(0.1) - np.log(0.9))  # solves loss = -zeros log 0.9 - (1 - zeros) log 0.1
    assert zeros == pytest.approx(0.7, abs=0.03)


def test_labels_of_the_training_rows_are_not_read():
    world = World("pseudo_labels")
    other = world.batch["train"] | {"label": (world.batch["train"]["label"] + 1) % CLASSES}
    assert_same(world.after().params, world.after(train=other).params)


# The control `tuned_teacher`


def test_the_teacher_is_tuned_first_and_then_the_student_learns_from_it():
    world, plain = World("tuned_teacher(updates=2)", rates={"student": 0.1}), World("offline", rates={"student": 0.1})
    states, descent = [world.start], jax.jit(jax.grad(quiz_loss))
    for _ in range(4):
        states.append(world.after(states[-1]))
    for old, new in itertools.pairwise(states[:3]):
        slope = descent(old.params["teachers"][0], world.batch["quiz"])
        assert_close(new.params["teachers"][0], difference(old.params["teachers"][0], slope))
        assert_same(new.params["student"], world.start.params["student"])
    tuned = states[2].params["teachers"]
    assert_same(states[4].params["teachers"], tuned)
    then = replace(plain.start, step=states[2].step)
    for _ in range(2):
        then, _ = plain.update(then, (Variables(tuned[0], {}),), world.batch)
    assert_close(states[4].params["student"], then.params["student"])


def test_a_negative_weight_of_the_quiz_is_refused():
    with pytest.raises(ConfigError, match=r"supervised must be at least 0; got -0\.5"):
        World("pseudo_labels(supervised=-0.5)")
