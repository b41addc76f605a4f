"""Tests of the steps `mgda`, `gradnorm` and `uncertainty`: weights of the terms, updates by hand, and metrics."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from scipy.optimize import minimize

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model, Term
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.schedules import Horizon, resolve
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Outputs, TrainState
from jaxdistill.fusion.min_norm import min_norm_weights
from jaxdistill.losses.term import stateless

BATCH = {"train": {"mask": jnp.ones(2)}}
SGD = registry.optimizers.build("sgd(momentum=0.0)", "")


def point(*start: float) -> Model:
    """Build a student whose only parameter is a point, and whose logits are 0."""
    say = lambda params, state, batch, *, train, key: (Outputs(jnp.zeros((2, 3))), state)
    return Model(lambda key, batch: ({"x": jnp.asarray(start)}, {}), say)


def bowl(centre: Any, scale: float = 1.0, floor: float = 0.0) -> Term:
    """Build the loss scale / 2 ||x - centre||^2 + floor, whose gradient is scale (x - centre)."""
    value = lambda x: 0.5 * scale * jnp.sum((x - jnp.asarray(centre)) ** 2) + floor
    return stateless(lambda signals: value(signals.params["student"]["x"]), local=False)


class World(NamedTuple):
    """The compiled update of a step on a point, and the first train state."""

    update: Any
    start: TrainState


def world(spec: str, start: Any, terms: dict[str, Any], rate: float = 0.1, **roles: float) -> World:
    named = {name: term if isinstance(term, WeightedTerm) else WeightedTerm(term) for name, term in terms.items()}
    minimised = objective(named, registry.fusions["single"]())
    update = optimizer(SGD, rate, roles={role: (SGD, own) for role, own in roles.items()})
    parsed = parse(spec, "step")
    step = registry.steps.build(parsed._replace(args=(point(*start), (), minimised, update)), "step")
    state = jax.jit(step.init)(jax.random.key(0), (), BATCH)
    return World(jax.jit(lambda ts: step.update(ts, (), BATCH)), state)


def run(w: World, updates: int) -> tuple[TrainState, dict[str, float]]:
    """Return the train state after some updates, and the metrics of the last one."""
    ts, metrics = w.start, {}
    for _ in range(updates):
        ts, metrics = w.update(ts)
    return ts, {name: float(mean.compute()) for name, mean in metrics.items()}


def x(ts: TrainState) -> np.ndarray:
    return np.asarray(ts.params["student"]["x"])


# --- the min-norm point


def weights_of(*vectors: Any) -> np.ndarray:
    vectors = jnp.asarray(vectors, jnp.float32)
    return np.asarray(jax.jit(min_norm_weights)(vectors @ vectors.T))


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        (((1, 0), (0, 1)), (0.5, 0.5)),
        (((2, 0), (0, 1)), (0.2, 0.8)),  # weights as 1 / ||g||^2
        (((3, 0), (-1, 0)), (0.25, 0.75)),  # opposed: they cancel
        (((1, 2), (1, 2)), (0.5, 0.5)),  # identical: all weights are right, equal ones are chosen
        (((1, 1), (3, 3)), (1, 0)),  # same direction: the shorter gets all weight
        (((1, 0), (1, 5)), (1, 0)),  # the shorter is the nearest point of the segment
        (((0, 0), (1, 0)), (0, 1)),  # a gradient of 0 gets no weight
        (((0, 0), (0, 0)), (0, 0)),
        (((1e-12, 0), (0, 1e-12)), (0.5, 0.5)),
        (((5, 5),), (1,)),
    ],
)
def test_the_min_norm_point_of_two_vectors_is_that_of_the_closed_form(vectors, expected):
    assert_close(weights_of(*vectors), np.asarray(expected, np.float32), rtol=1e-4)


@pytest.mark.parametrize("count", [3, 5])
def test_the_min_norm_point_of_more_vectors_is_that_of_a_solver(count):
    for seed in range(5):
        vectors = np.random.default_rng(seed).normal(size=(count, 8)) + 0.5
        found = weights_of(*vectors)
        assert (found >= 0).all() and np.isclose(found.sum(), 1, atol=1e-5)
        products = vectors @ vectors.T
        least = minimize(
            lambda w, p=products: w @ p @ w,
            np.full(count, 1 / count),
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        ).fun
        assert found @ products @ found < 1.01 * least + 1e-4
        shortest = found @ vectors  # its product with each vector is at least its own square
        assert (vectors @ shortest > 0.95 * shortest @ shortest - 1e-3).all()


# --- mgda


CONFLICT = {"near": bowl((0.0, 1.0)), "far": bowl((0.0, -1.0), scale=20.0)}


def falls(spec: str) -> dict[str, float]:
    """Return by how much each term falls in one small step from (0.2, 0.2)."""
    w = world(spec, (0.2, 0.2), CONFLICT, rate=1e-3)
    before = w.update(w.start)[1]
    after = w.update(w.update(w.start)[0])[1]
    return {name: float(before[f"terms/{name}"].sum - after[f"terms/{name}"].sum) for name in CONFLICT}


def test_under_mgda_every_term_falls_where_their_sum_lets_one_rise():
    alone = falls("offline")
    assert alone["far"] > 0 > alone["near"]
    together = falls("mgda")
    assert together["far"] > 0 and together["near"] > 0


def test_a_step_of_mgda_is_that_of_the_closed_form():
    """Check that orthogonal gradients (2, 0) and (0, 1) get the weights 0.2 and 0.8."""
    terms = {"a": bowl((-1.0, 0.0)), "b": WeightedTerm(bowl((1.0, -2.0), scale=1.0), 0.5)}
    ts, metrics = run(world("mgda", (1.0, 0.0), terms), 1)
    assert_close(x(ts), np.asarray([1.0, 0.0]) - 0.1 * np.asarray([0.2 * 2, 0.8 * 0.5 * 2]))
    assert metrics["weights/a"] == pytest.approx(0.2) and metrics["weights/b"] == pytest.approx(0.8 * 0.5)
    assert metrics["loss"] == pytest.approx(0.5 * 4 + 0.5 * 0.5 * 4)  # with the weights of the config


def test_mgda_of_normalised_gradients_does_not_see_their_length():
    terms = {"a": bowl((-1.0, 0.0)), "b": WeightedTerm(bowl((1.0, -2.0), scale=30.0), 0.5)}
    _, metrics = run(world("mgda(normalize='norm')", (1.0, 0.0), terms), 1)
    assert metrics["weights/a"] == pytest.approx(0.5) and metrics["weights/b"] == pytest.approx(0.5 * 0.5)


def test_terms_that_mgda_does_not_weigh_are_added():
    terms = {"a": bowl((-1.0, 0.0)), "b": bowl((1.0, -1.0)), "still": WeightedTerm(bowl((0.0, 0.0)), 0.1)}
    ts, metrics = run(world("mgda(terms=('a', 'b'))", (1.0, 0.0), terms), 1)
    assert metrics["weights/still"] == pytest.approx(0.1)
    assert_close(x(ts), np.asarray([1.0, 0.0]) - 0.1 * np.asarray([0.2 * 2 + 0.1, 0.8]))


def test_what_belongs_to_one_term_follows_that_term_alone():
    """Check that a term's own params, such as a projector, learn with its config weight even if MGDA gives it 0."""

    own = lambda key, seen: ({"y": jnp.ones(())}, {})
    longer = lambda params, x: 0.5 * (params["y"] ** 2 + jnp.sum((x - jnp.asarray([-1.0, 0.0])) ** 2))
    apply = lambda params, state, seen, *, key: (longer(params, seen.params["student"]["x"]), state)
    terms = {"a": WeightedTerm(Term(own, apply, local=False), 0.7), "b": WeightedTerm(bowl((0.0, 0.0)), 0.5)}
    ts, metrics = run(world("mgda", (1.0, 0.0), terms), 1)
    assert metrics["weights/a"] == 0 and metrics["weights/b"] == pytest.approx(0.5)  # same direction: b is shorter
    assert ts.params["terms"]["a"]["y"] == pytest.approx(1 - 0.1 * 0.7)
    assert_close(x(ts), np.asarray([1 - 0.1 * 0.5, 0.0]))


# --- gradnorm

SCALES = {"small": bowl((1.0, 0.0)), "large": bowl((0.0, 1.0), scale=16.0), "medium": bowl((1.0, 1.0), scale=4.0)}


def sizes(ts: TrainState) -> np.ndarray:
    """Return the norms of the terms' weighted gradients in the student."""
    slopes = [s * np.linalg.norm(x(ts) - np.asarray(c)) for s, c in ((1, (1, 0)), (16, (0, 1)), (4, (1, 1)))]
    return np.asarray(ts.params["weights"]) * slopes


def test_gradnorm_makes_gradients_of_known_scale_equal():
    """Check that the weights alone make the gradients of a student with rate 0 equal, and keep their sum."""
    still = world("gradnorm(alpha=0.0)", (0.5, 0.5), SCALES, rate=0.0, weights=2e-4)
    assert sizes(still.start).max() > 15 * sizes(still.start).min()
    ts, _ = run(still, 4000)
    assert sizes(ts).max() < 1.05 * sizes(ts).min()
    assert float(ts.params["weights"].sum()) == pytest.approx(3, rel=1e-5)
    frozen, _ = run(world("gradnorm(alpha=0.0)", (0.5, 0.5), SCALES, rate=0.0, weights=0.0), 10)
    assert_close(sizes(frozen), sizes(still.start))


def test_a_step_of_gradnorm_is_that_of_the_algorithm():
    terms = {"a": WeightedTerm(bowl((-1.0, 0.0)), 0.5), "b": bowl((0.0, 2.0), scale=3.0, floor=1.0)}
    w = world("gradnorm(alpha=1.5)", (1.0, 0.0), terms, rate=0.01, weights=0.001)
    state, position = w.start, np.asarray([1.0, 0.0])
    own, first = np.ones(2), None
    for _ in range(3):
        state, metrics = w.update(state)
        slopes = np.stack([position - (-1.0, 0.0), 3 * (position - (0.0, 2.0))])
        losses = np.asarray([0.5 * slopes[0] @ slopes[0], slopes[1] @ slopes[1] / 6 + 1.0])
        first = losses if first is None else first
        assert_close(state.state["weights"], first)
        norms = np.linalg.norm(slopes, axis=1)
        rates = losses / first / np.mean(losses / first)
        wanted = np.mean(own * norms) * rates**1.5
        assert float(metrics["weights/a"].sum) == pytest.approx(0.5 * own[0], rel=1e-5)
        position = position - 0.01 * (0.5 * own[0] * slopes[0] + own[1] * slopes[1])
        own = own - 0.001 * np.sign(own * norms - wanted) * norms
        own = 2 * own / own.sum()
        assert_close(x(state), position)
        assert_close(state.params["weights"], own)


def test_a_term_of_weight_zero_is_in_no_mean_of_gradnorm():
    terms = {"a": bowl((-1.0, 0.0)), "b": bowl((0.0, 2.0), scale=3.0, floor=1.0)}
    absent = WeightedTerm(bowl((5.0, 5.0), scale=100.0), 0.0)
    (alone, _), (beside, _) = (
        run(world("gradnorm(alpha=1.5)", (1.0, 0.0), each, rate=0.01, weights=0.001), 4)
        for each in (terms, {**terms, "c": absent})
    )
    assert_close(beside.params["weights"][:2], alone.params["weights"])


def test_a_first_loss_of_zero_counts_as_no_progress():
    """Check that the first update does not see the losses: the progress of every term is 1, even of one at 0."""
    terms = lambda floor: {"a": bowl((-1.0, 0.0), scale=2.5, floor=floor), "b": bowl((1.0, 2.0), scale=2.0)}
    at_zero, above = (run(world("gradnorm", (1.0, 0.0), terms(floor), weights=0.01), 1)[0] for floor in (-5.0, 1.0))
    assert_close(at_zero.params["weights"], above.params["weights"])
    assert at_zero.params["weights"][0] < 1 < at_zero.params["weights"][1]


def test_a_term_that_trains_slowly_is_favoured():
    """Check that a loss that hardly falls gets the larger weight; at first, both gradients are equally long."""
    terms = {"quick": bowl((0.5, 0.5)), "slow": bowl((1.0, 0.0), floor=10.0)}
    ends = {alpha: run(world(f"gradnorm(alpha={alpha})", (0.5, 0.0), terms, weights=0.01), 30)[0] for alpha in (0, 2)}
    quick, slow = np.asarray(ends[2].params["weights"])
    assert slow > quick
    assert x(ends[2])[0] > x(ends[0])[0] + 0.01


def test_gradnorm_may_look_at_some_parameters():
    terms = {"a": bowl((-1.0, 0.0)), "b": bowl((0.0, 2.0))}
    ts, _ = run(world("gradnorm(layer='^x$')", (1.0, 0.0), terms), 1)
    assert np.isfinite(x(ts)).all()
    with pytest.raises(ValueError, match="layer='kernel' matches no parameter of the student; it has x"):
        world("gradnorm(layer='kernel')", (1.0, 0.0), terms)


@pytest.mark.parametrize("spec", ["gradnorm(alpha=1.0)", "mgda", "uncertainty"])
def test_a_term_of_weight_zero_is_absent_until_its_phase(spec):
    """Check that a term whose config weight is 0 neither trains the student nor changes its learned weight."""
    later = resolve("phases(values=(0, 1), at=(0.5,))", Horizon(10, 1), "")
    terms = {"a": bowl((-1.0, 0.0)), "b": WeightedTerm(bowl((1.0, 3.0), scale=2.0), later)}
    ts, metrics = run(world(spec, (1.0, 0.0), terms), 3)
    assert metrics["weights/b"] == 0 and x(ts)[1] == 0 and x(ts)[0] < 1
    if "weights" in ts.params:
        assert ts.params["weights"][1] == pytest.approx({"g": 1.0, "u": 0.0}[spec[0]])
    ts, metrics = run(world(spec, (1.0, 0.0), terms), 6)
    assert metrics["weights/b"] > 0 and x(ts)[1] > 0


# --- uncertainty


def test_uncertainty_is_at_rest_where_the_variance_is_the_loss():
    terms = {"a": WeightedTerm(bowl((1.0, 0.0), scale=4.0), 0.3), "b": bowl((0.0, 1.0), scale=0.1)}
    ts, metrics = run(world("uncertainty", (0.0, 0.0), terms, rate=0.0, weights=1.0), 200)
    assert_close(jnp.exp(ts.params["weights"]), np.asarray([2.0, 0.05]), rtol=1e-4)
    assert metrics["weights/a"] == pytest.approx(0.3 / (2 * 2.0), rel=1e-4)
    assert metrics["weights/b"] == pytest.approx(1 / (2 * 0.05), rel=1e-4)
    assert metrics["loss"] == pytest.approx(0.3 * 2 + 0.05)


def test_a_step_of_uncertainty_descends_its_loss():
    terms = {"a": WeightedTerm(bowl((1.0, 0.0), scale=4.0), 0.3), "b": bowl((0.0, 1.0)), "still": bowl((0.5, 0.5))}
    ts, _ = run(world("uncertainty(terms=('a', 'b'))", (2.0, 2.0), terms, rate=0.1), 2)
    value = lambda p, k: 0.5 * jnp.asarray((4.0, 1.0, 1.0))[k] * jnp.sum((p - jnp.asarray(CENTRES[k])) ** 2)

    def loss(position, s):
        tasks = [w * (jnp.exp(-s[k]) * value(position, k) / 2 + s[k] / 2) for k, w in enumerate((0.3, 1.0))]
        return sum(tasks) + value(position, 2)

    position, s = jnp.asarray([2.0, 2.0]), jnp.zeros(2)
    for _ in range(2):
        slopes = jax.grad(loss, (0, 1))(position, s)
        position, s = position - 0.1 * slopes[0], s - 0.1 * slopes[1]
    assert_close(x(ts), position)
    assert_close(ts.params["weights"], s)


CENTRES = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))


# --- all of them


@pytest.mark.parametrize("step", ["gradnorm", "mgda", "uncertainty"])
def test_a_term_that_does_not_exist_is_named(step):
    with pytest.raises(ConfigError, match=r"step: .*no term 'kdd'; it has a, b"):
        world(f"{step}(terms=('kdd',))", (0.0, 0.0), {"a": bowl((0.0, 0.0)), "b": bowl((1.0, 0.0))})


def test_a_term_that_begins_at_zero_has_lost_nothing_yet():
    """Check the weight of a term whose first loss is 0, by which GradNorm cannot divide."""
    terms = {"still": bowl([1.0]), "far": bowl([0.0])}
    ts, _ = run(world("gradnorm(layer='x', alpha=2.0)", (1.0,), terms, weights=0.1), 1)
    still, far = np.asarray(ts.params["weights"])
    assert np.isfinite([still, far]).all() and still > 1.01 > 0.99 > far


def test_defaults_are_those_of_the_papers():
    """Check that GradNorm's alpha is 1.5, as Chen et al. (2018) used on NYUv2."""
    assert inspect.signature(registry.steps["gradnorm"]).parameters["alpha"].default == 1.5
