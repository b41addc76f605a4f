"""Tests of the steps `averaged` and `mutual`: updates by hand, and wrong updates that must differ."""

import itertools
from dataclasses import replace

import examples
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from checks import assert_close, assert_same
from perceptrons import KEY, counted, perceptron, rows, speak
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.interfaces import Model
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.core.types import TrainState, Variables

TERMS = {"kd": ("kd(temperature=2.0)", 0.75), "cross_entropy": ("cross_entropy", 0.25)}


class World:
    """A step on perceptrons of the given widths, the student's first, with plain gradient descent at rate 1."""

    def __init__(self, spec: str, *widths: int, fusion: str = "average", rates: dict[str, float] | None = None):
        self.student, *teachers = map(perceptron, widths)
        self.batch = {"train": rows(0, 8)}
        terms = {name: WeightedTerm(build_loss(term), weight) for name, (term, weight) in TERMS.items()}
        plain = registry.optimizers.build("sgd(momentum=0.0)", "")
        update = optimizer(plain, 1.0, roles={role: (plain, rate) for role, rate in (rates or {}).items()})
        minimised = objective(terms, registry.fusions.build(fusion, ""))
        parsed = parse(spec, "")
        given = (self.student, tuple(teachers), minimised, update)
        self.step = registry.steps.build(parsed._replace(args=given), "step", examples.TIMED)
        self.frozen = tuple(self.first(t, n) for n, t in enumerate(teachers, 1))
        self.start = jax.jit(self.step.init)(KEY, self.frozen, self.batch)
        self.update = jax.jit(self.step.update)

    def first(self, model: Model, number: int) -> Variables:
        return Variables(*model.init(jax.random.key(number), self.batch["train"]))

    def states(self, count: int) -> list[TrainState]:
        """Return the first train state, and those after each of `count` updates."""
        found = [self.start]
        for _ in range(count):
            found.append(self.update(found[-1], self.frozen, self.batch)[0])
        return found


def loss(student, others, batch, weights=(0.75, 0.25)):
    """Compute by hand a student's loss, with the mean prediction of `others` as its teacher."""
    said = speak(student, batch["image"])
    heard = sum(jax.nn.softmax(speak(other, batch["image"]) / 2.0) for other in others) / len(others)
    kd = 4.0 * jnp.sum(heard * (jnp.log(heard) - jax.nn.log_softmax(said / 2.0)), -1)
    hard = optax.softmax_cross_entropy_with_integer_labels(said, batch["label"])
    return weights[0] * counted(kd, batch) + weights[1] * counted(hard, batch)


def moved(student, others, batch, **more):
    """Return the student's params after one step of plain gradient descent at rate 1."""
    slope = jax.jit(jax.grad(lambda own: loss(own, others, batch, **more)))(student)
    return jax.tree.map(jnp.subtract, student, slope)


# An averaged teacher


def by_hand(world: World, momentum: float, every: int, updates: int, first: bool = False) -> tuple[list, list]:
    """Return students and averages after each update; with `first`, the average wrongly moves before the student."""
    student = average = world.start.params["student"]
    students, averages = [student], [average]
    for number in range(1, updates + 1):
        m = min(momentum, 1 - 1 / (number // every + 1)) if number % every == 0 else 1.0
        m = 0.0 if number < every else m
        blend = lambda a, b, m=m: jax.tree.map(lambda x, y: m * x + (1 - m) * y, a, b)
        if first:
            average = blend(average, student)
        new = moved(student, [average], world.batch["train"])
        average = average if first else blend(average, new)
        student = new
        students.append(student)
        averages.append(average)
    return students, averages


@pytest.mark.sampled("0.9-2")
@pytest.mark.parametrize(("momentum", "every"), [(0.6, 1), (0.0, 2), (0.9, 2)])
def test_the_average_moves_after_the_student_that_learned_from_it(momentum, every):
    world = World(f"averaged(momentum={momentum}, every={every})", 4, 4)
    found = world.states(5)
    students, averages = by_hand(world, momentum, every, 5)
    for ts, student, average in zip(found, students, averages, strict=True):
        assert_close(ts.params["student"], student, atol=1e-5)
        assert_close(ts.state["average"].params, average, atol=1e-5)
    wrong = by_hand(world, momentum, every, 5, first=True)[0][-1]
    assert optax.tree.norm(optax.tree.sub(wrong, students[-1])) > 1e-3


def test_an_average_that_follows_at_once_teaches_nothing():
    """Check that a student whose average equals it learns from labels alone: soft targets then have no gradient."""
    world = World("averaged(momentum=0.0)", 4, 4)
    labels = lambda student: moved(student, [student], world.batch["train"], weights=(0.0, 0.25))
    ts = world.states(2)
    assert_close(ts[2].params["student"], labels(ts[1].params["student"]), atol=1e-5)
    assert_same(ts[2].state["average"].params, ts[2].params["student"])


def test_an_average_that_stays_is_a_frozen_teacher_and_what_was_given_is_not_read():
    world = World("averaged(momentum=1.0)", 4, 4)
    beside = replace(world.start, step=world.start.step + 10**6)  # after so many updates, a plain mean hardly moves
    after, _ = world.update(beside, world.frozen, world.batch)
    assert_close(after.state["average"].params, world.start.state["average"].params)
    other = (world.first(world.student, 7),)
    assert_same(world.update(beside, other, world.batch)[0].params, after.params)


def test_the_place_is_that_of_the_named_teacher_and_the_others_stay_frozen():
    world = World("averaged(momentum=0.5, teacher=1)", 4, 5, 4, fusion="single(teacher=0)")
    plain = World("offline", 4, 5, fusion="single")
    assert_close(world.states(3)[-1].params["student"], plain.states(3)[-1].params["student"])
    evolved = world.step.evolve_teachers(world.start.params, world.start.state, world.frozen)
    assert evolved[0] is world.frozen[0]
    assert_same(evolved[1].params, world.start.params["student"])


@pytest.mark.parametrize(
    ("spec", "widths", "said"),
    [
        ("averaged(momentum=1.5)", (4, 4), "momentum must be from 0 to 1"),
        ("averaged(every=0)", (4, 4), "every at least 1"),
        ("averaged()", (4,), "there is no teacher 0"),
        ("averaged()", (4, 5), "must have the student's model"),
    ],
)
def test_what_cannot_be_averaged_is_refused(spec, widths, said):
    with pytest.raises(ValueError, match=said):
        World(spec, *widths)


def test_whole_numbers_of_the_state_are_taken_as_they_are():
    from jaxdistill.steps.averaged import moving_average

    old, new = ({"n": jnp.asarray(n, jnp.int32), "x": jnp.asarray(float(n))} for n in (1, 3))
    assert_same(moving_average(old, new, jnp.asarray(0.5)), {"n": np.int32(3), "x": np.float32(2.0)})


# Peers


def members(ts: TrainState) -> list:
    return [ts.params["student"], *ts.params["teachers"]]


def together(everybody, batch) -> list:
    """Return the members after a wrong update, in which each loss also moves the members that teach."""
    but = lambda k, all_: [each for j, each in enumerate(all_) if j != k]
    whole = lambda all_: sum(loss(own, but(k, all_), batch) for k, own in enumerate(all_))
    slopes = jax.jit(jax.grad(whole))(everybody)
    return jax.tree.map(jnp.subtract, everybody, slopes)


@pytest.mark.sampled("widths0")
@pytest.mark.parametrize("widths", [(4, 5), (4, 5, 6)])
def test_peers_learn_from_labels_and_from_each_other_and_no_gradient_crosses(widths):
    world = World("mutual()", *widths)
    ts = world.states(2)
    for before, after in itertools.pairwise(ts):
        everybody = members(before)
        for k, (own, found) in enumerate(zip(everybody, members(after), strict=True)):
            others = [each for j, each in enumerate(everybody) if j != k]
            assert_close(found, moved(own, others, world.batch["train"]), atol=1e-5)
    wrong = together(members(ts[0]), world.batch["train"])
    for own, crossed in zip(members(ts[1]), wrong, strict=True):
        assert optax.tree.norm(optax.tree.sub(own, crossed)) > 1e-2


def test_one_that_hears_nobody_learns_from_labels_while_its_student_learns_from_it():
    world = World("mutual(terms=('cross_entropy',))", 4, 5)
    student, teacher = members(world.start)
    after = members(world.states(1)[1])
    assert_close(after[0], moved(student, [teacher], world.batch["train"]), atol=1e-5)
    assert_close(after[1], moved(teacher, [teacher], world.batch["train"], weights=(0.0, 0.25)), atol=1e-5)


def test_peers_that_do_not_learn_teach_as_frozen_ones_to_the_bit():
    still, plain = World("mutual()", 4, 5, rates={"teachers": 0.0}), World("offline", 4, 5)
    for one, other in zip(still.states(3), plain.states(3), strict=True):
        assert_same(one.params["student"], other.params["student"])
        assert_same(one.params["teachers"][0], plain.frozen[0].params)


def test_the_order_of_peers_has_no_meaning():
    world, swapped = World("mutual()", 4, 5, 6), World("mutual()", 4, 6, 5)
    other = jax.jit(swapped.step.init)(KEY, world.frozen[::-1], swapped.batch)
    other, _ = swapped.update(other, world.frozen[::-1], swapped.batch)
    student, one, two = members(world.states(1)[1])
    assert_close(members(other), [student, two, one], atol=1e-6)


def test_the_peers_are_told_as_they_have_become():
    world = World("mutual()", 4, 5, 6)
    ts = world.states(2)[-1]
    evolved = world.step.evolve_teachers(ts.params, ts.state, world.frozen)
    assert_same([values.params for values in evolved], list(ts.params["teachers"]))


def test_a_student_alone_and_a_peer_that_cannot_learn_are_refused():
    with pytest.raises(ValueError, match="needs peers"):
        World("mutual()", 4)
    with pytest.raises(ValueError, match="no term 'kdd'"):
        World("mutual(terms=('kdd',))", 4, 5)
    world = World("mutual()", 4, 5)
    with pytest.raises(ValueError, match="no parameters"):
        world.step.init(KEY, (Variables({}, {}),), world.batch)


# A run


@pytest.mark.slow
def test_a_run_with_a_peer_measures_it_when_it_has_learned_and_takes_a_finished_one_over(tmp_path):
    words = ["--config.step=mutual()", "--config.teachers.big.steps=0", "--config.control=False"]
    words += ["--config.objective.kd.weight=0.1", "--config.objective.cross_entropy.weight=1"]
    assert runs.run(tmp_path, *words) == 0
    rows = runs.results(tmp_path)["rows"]
    assert [row["name"] for row in rows] == ["teacher big", "student"]
    assert all(row["accuracy"] > 0.35 for row in rows)  # guessing gives 0.25; both start from random params
    saved = runs.saved(tmp_path / "student")
    assert any(name.startswith("params/teachers/0/") for name in saved)
    assert not (tmp_path / "teachers").exists()
    assert runs.run(tmp_path, *words) == 0
    again = runs.results(tmp_path)["rows"]
    assert [(row["accuracy"], row["nll"]) for row in again] == [(row["accuracy"], row["nll"]) for row in rows]


def test_a_teacher_counted_from_the_end_is_reported_by_its_index():
    assert World("averaged(teacher=-1)", 4, 5, 4).step.trained_teachers == {1}
