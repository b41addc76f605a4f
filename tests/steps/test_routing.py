"""Tests of the step `routing`: what the gate learns, where no gradient may pass, and configs that are refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from batches import signals
from checks import all_finite, assert_close, assert_same
from domains import BOTH, CLASSES, GATE, STUDENT, right_on, rows, talker, trained, world
from examples import slow

from jaxdistill.core import registry
from jaxdistill.core.collectives import PMAP_AXIS
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Outputs
from jaxdistill.run.config import differ
from jaxdistill.run.resolve import resolve
from jaxdistill.run.stages import Stage
from jaxdistill.steps.routing import STREAMS, _loss_with_entropy_floor, _policy_gradient

KEY = jax.random.key(0)


def _half_dead(params, state, batch, *, train, key):
    said = 0.9 * jax.nn.one_hot(batch["truth"], CLASSES) + 0.1 / CLASSES
    return Outputs(jnp.log(said), (said, jnp.zeros_like(said), 4 * said), embedding=said), state


HALF_DEAD = Model(lambda key, batch: ({}, {}), _half_dead)  # the hidden state of layer 1 is 0
PATHS, ROUTED = "gate(inputs=('student',), width=8, paths=2)", "routed_hidden(layers=((1, 1), (1, 2)))"


def weight_of_the_first_path(state) -> float:
    """Return the mean weight of the first path, which comes from the teacher's dead layer."""
    return float(fused(state, PATHS, (HALF_DEAD,), rows(3)).routes[0].mean())


def fused(state, fusion: str, teachers, batch) -> Outputs:
    """Return the teachers' outputs as the trained gate fuses them."""
    student = registry.models.build(STUDENT, "")

    @jax.jit
    def apply(params, batch):
        out, _ = student.apply(params["student"], {}, batch, train=False, key=KEY)
        said = tuple(teacher.apply({}, {}, batch, train=False, key=KEY)[0] for teacher in teachers)
        seen = replace(signals(), student=out, teachers=said, batch=batch, mask=batch["mask"])
        return registry.fusions.build(fusion, "").apply(params["fusion"], {}, seen, key=KEY)[0]

    return jax.device_get(apply(state.params, batch))


def weight_on_the_right_one(state, batch) -> float:
    domain = np.asarray(batch["domain"])
    return float(fused(state, GATE, BOTH, batch).weights[domain, np.arange(len(domain))].mean())


def accuracy(student: Model, state, batch) -> float:
    say = jax.jit(lambda *variables: student.apply(*variables, batch, train=False, key=KEY)[0].logits)
    logits = np.asarray(say(state.params["student"], state.state["student"]))
    return float((logits.argmax(-1) == np.asarray(batch["label"])).mean())


def test_the_reward_is_standardised_over_the_rows_that_count():
    draw, mask = np.random.default_rng(0), jnp.ones(40).at[7].set(0.0)
    log_p = jnp.asarray(draw.normal(size=(2, 40)), jnp.float32)
    weights = jnp.full((2, 40), 0.5)
    of = lambda log_p: np.asarray(_policy_gradient(weights, log_p, mask, jax.random.key(0)))
    assert_close(of(3 * log_p + 1), of(log_p), rtol=1e-4)
    advantages = of(log_p)[np.asarray(mask) != 0] / np.log(2)  # -advantage * log(1 / 2)
    assert_close(np.mean(advantages**2), 1.0, rtol=1e-3)
    assert abs(np.mean(advantages)) < 1e-3


@pytest.mark.sampled("calibration")
@pytest.mark.parametrize("by", ["calibration", "reinforce"])
def test_each_domain_is_routed_to_the_teacher_that_is_right_there(by):
    step, frozen, student = world(f"routing(by='{by}')", BOTH)
    batches = {"train": rows(0, 256), "calibration": rows(1)}
    state, metrics = trained(step, frozen, batches, 300)
    assert accuracy(student, state, rows(2, 256)) > 0.95
    assert weight_on_the_right_one(state, rows(2, 256)) > 0.95
    assert metrics["gate/entropy"] < 0.2 and 0.3 < metrics["gate/share/0"] < 0.7


def test_with_labels_of_others_nothing_is_routed():
    """Check that a gate learns no routing from calibration labels that belong to other rows."""
    step, frozen, _ = world("routing", BOTH)
    calibration = rows(1)
    calibration["label"] = np.roll(calibration["label"], 7)
    state, _ = trained(step, frozen, {"train": rows(0, 256), "calibration": calibration}, 300)
    assert weight_on_the_right_one(state, rows(2, 256)) < 0.7


def test_no_gradient_crosses_between_gate_and_student():
    step, frozen, _ = world("routing", BOTH, terms=("kd", "cross_entropy"))
    batches = {"train": rows(0), "calibration": rows(1)}
    start = jax.jit(step.init)(KEY, frozen, batches)
    update = jax.jit(step.update)
    moved = lambda batches: update(start, frozen, batches)[0].params
    other = {"train": rows(2), "calibration": rows(1)}
    assert_same(moved(batches)["fusion"], moved(other)["fusion"])  # the gate does not depend on the student's batch
    other = {"train": rows(0), "calibration": rows(3)}
    assert_same(moved(batches)["student"], moved(other)["student"])
    nothing = rows(1) | {"mask": np.zeros(64, np.float32)}
    silent, _ = update(start, frozen, {"train": rows(0), "calibration": nothing})
    assert_close(silent.params["fusion"], start.params["fusion"])


def test_a_student_cannot_choose_its_teacher_by_what_the_gate_reads_of_it():
    """Check that no gradient of the gate reaches the student; its head is random, as a head of 0 would pass none."""
    gate, seen = registry.fusions.build("gate(width=4, paths=2)", ""), signals(depths=(4, 3))
    params = gate.init(KEY, seen)[0]
    params = params | {"head/kernel": jax.random.normal(KEY, params["head/kernel"].shape)}

    def says(student):
        fused = gate.apply(params, {}, replace(seen, student=student), key=KEY)[0]
        return jnp.sum(fused.logits[:, 0]) + jnp.sum(fused.routes[0])

    assert not any(x.any() for x in jax.tree.leaves(jax.grad(says)(seen.student)))


def test_what_the_mean_weights_lack_of_the_floor_is_lost():
    weights, mask = jnp.array([[0.9, 0.7, 0.0], [0.1, 0.3, 1.0]]), jnp.array([1.0, 1.0, 0.0])
    entropy = -0.8 * np.log(0.8) - 0.2 * np.log(0.2)
    for floor, lacks in ((0.6, 0.6 - entropy), (0.3, 0.0)):
        assert_close(_loss_with_entropy_floor(jnp.array([1.0, 3.0, 9.0]), weights, mask, floor)[0], 2 + lacks)


@pytest.mark.slow
@pytest.mark.parametrize("chooses", ["teachers", slow("paths")])
def test_the_quiz_trains_the_gate_by_what_one_update_of_the_student_brings(chooses):
    """Check the gate's gradient against finite differences, in float64, of the student's quiz loss after one update."""
    given = {"teachers": (BOTH,), "paths": ((HALF_DEAD,), PATHS, ("kd", ROUTED))}[chooses]
    with jax.enable_x64(True):
        step, frozen, student = world(
            "routing(by='quiz', inner_lr=0.5, floor=0.0)", *given, direction="sgd(momentum=0.0)"
        )
        double = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)
        batches = double({"train": rows(0), "quiz": rows(1)})
        start = step.init(KEY, frozen, batches)
        start = replace(start, params=double(start.params))
        noise = lambda n, x: x + 0.3 * jax.random.normal(jax.random.fold_in(KEY, n), x.shape, x.dtype)
        fusion = {name: noise(n, x) for n, (name, x) in enumerate(sorted(start.params["fusion"].items()))}
        start = replace(start, params=start.params | {"fusion": fusion})
        after, _ = jax.jit(step.update)(start, frozen, batches)
        slope = jax.tree.map(lambda a, b: (a - b) / 0.02, start.params["fusion"], after.params["fusion"])

        def quiz(fusion):
            state = replace(start, params=start.params | {"fusion": fusion})
            pilot = _descended(step, state, frozen, batches, 0.5)
            out, _ = student.apply(pilot, {}, batches["quiz"], train=False, key=KEY)
            return optax.softmax_cross_entropy_with_integer_labels(out.logits, batches["quiz"]["label"]).mean()

        direction = {name: noise(9 + n, jnp.zeros_like(x)) for n, (name, x) in enumerate(sorted(fusion.items()))}
        at = lambda size: quiz(jax.tree.map(lambda x, d: x + size * d, fusion, direction))
        expected = (at(1e-5) - at(-1e-5)) / 2e-5
        np.testing.assert_allclose(optax.tree.vdot(slope, direction), expected, rtol=1e-6)


def _descended(step, state, frozen, batches, rate):
    """Return the student's params after one plain update at `rate`, from the step's own update at rate 0.02."""
    after, _ = step.update(state, frozen, batches)
    return jax.tree.map(lambda a, b: a + (b - a) * rate / 0.02, state.params["student"], after.params["student"])


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="looking one update ahead, a hint that says nothing seems to do least harm")
def test_a_quiz_gives_a_dead_layer_no_weight():
    """Check what held only while a gradient reached the student through the inputs of the gate."""
    step, frozen, _ = world("routing(by='quiz', inner_lr=1.0)", (HALF_DEAD,), PATHS, (ROUTED, "kd"))
    state, _ = trained(step, frozen, {"train": rows(0, 32), "quiz": rows(1)}, 150)
    assert weight_of_the_first_path(state) < 0.1


def test_a_layer_of_which_a_probe_reads_nothing_gets_no_weight():
    """Check that probes find the dead layer, and that swapped probes or the loss that the gate weights prefer it."""
    dead = []
    for probes in ("(1, 2)", "(2, 1)"):
        step, frozen, _ = world(f"routing(probes={probes})", (HALF_DEAD,), PATHS, (ROUTED, "kd"))
        state, watched = trained(step, frozen, {"train": rows(0, 32), "calibration": rows(1)}, 150)
        dead.append(weight_of_the_first_path(state))
        assert watched["gate/share/0"] == pytest.approx(dead[-1], abs=0.05)
    assert dead[0] < 0.1 and dead[1] > 0.9
    step, frozen, _ = world("offline", (HALF_DEAD,), PATHS, (ROUTED, "kd"))
    state, _ = trained(step, frozen, {"train": rows(0, 32)}, 150)
    assert weight_of_the_first_path(state) > 0.9


# Absent teachers and masked rows


@pytest.mark.sampled("quiz")
@pytest.mark.parametrize("by", ["calibration", "reinforce", "quiz"])
def test_what_trains_the_gate_hears_no_absent_teacher_and_takes_no_label_for_another(by):
    """Check that NaN of absent teachers and labels of masked rows change nothing; a label -1 that counts gives NaN."""

    def absent(k: int) -> Model:
        unsaid = lambda batch: jnp.where(batch["present"][:, k] == 0, batch["nonsense"], 0.0)[:, None]
        return talker(lambda batch: right_on(k)(batch) + unsaid(batch))

    step, frozen, _ = world(f"routing(by='{by}')", (absent(0), absent(1)))
    update, counts = jax.jit(step.update), np.arange(64) < 50
    there = {"present": np.stack([counts, np.arange(64) % 3 > 0], 1), "mask": np.float32(counts)}

    def given(nonsense: float, hidden: int, first: int) -> dict[str, dict[str, jax.Array]]:
        label = np.where(counts, rows(1)["label"], hidden)
        label[0] = first
        known = there | {"nonsense": np.full(64, nonsense, np.float32), "label": np.int32(label)}
        return {"train": rows(0) | known, STREAMS[by]: rows(1) | known}

    start = jax.jit(step.init)(KEY, frozen, given(0.0, 0, 0))
    (clean, _), (spoilt, _) = (update(start, frozen, given(*each, 0)) for each in ((0.0, 0), (np.nan, -1)))
    assert all_finite(spoilt.params["fusion"])
    assert_same(spoilt.params, clean.params)
    assert np.isnan(update(start, frozen, given(0.0, 0, -1))[1]["gate/loss"].compute())


# What does not go together is refused


def planned(**differences) -> Stage:
    return resolve(differ(runs.load(), **differences), jax.devices()).student


@pytest.mark.parametrize(
    ("differences", "path", "said"),
    [
        (
            {"fusion": "gate()"},
            "step",
            "the gate 'gate()' is trained by the very loss that it weights. Set step='routing()'",
        ),
        (
            {"fusion": "gate()", "step": "routing()"},
            "streams",
            "reads the stream 'calibration'; add streams.calibration",
        ),
        (
            {"step": "routing()", "streams": {"calibration": {"split": "train"}}},
            "step",
            "'routing()' cannot train 'single()'; set fusion='gate()'",
        ),
        (
            {"fusion": "gate()", "step": "routing(hard=True)", "streams": {"calibration": {"split": "train"}}},
            "step",
            "this gate reads teacher outputs. Set fusion=\"gate(inputs=('student', 'image'))\"",
        ),
        ({"fusion": "gate(inputs=())", "step": "routing()"}, "fusion", "a gate needs inputs"),
        (
            {"fusion": "gate(paths=1)", "step": "routing(by='quiz', probes=(1,))"},
            "step",
            "probes need by='calibration'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(differences, path, said):
    with pytest.raises(ConfigError) as error:
        planned(**differences)
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value)


def test_on_several_devices_each_adds_its_share_of_the_penalty():
    draw = np.random.default_rng(0)
    values, mask = jnp.asarray(draw.normal(size=8), jnp.float32), jnp.asarray([1.0, 1, 0, 1, 1, 1, 1, 0])
    weights = jnp.asarray(draw.dirichlet((1.0, 1.0, 1.0), 8).T, jnp.float32)
    whole = _loss_with_entropy_floor(values, weights, mask, 1.2)[0]
    loss = lambda v, w, m: _loss_with_entropy_floor(v, w, m, 1.2)[0]
    split = values.reshape(2, 4), jnp.moveaxis(weights.reshape(3, 2, 4), 1, 0), mask.reshape(2, 4)
    assert_close(jax.pmap(loss, axis_name=PMAP_AXIS)(*split).sum(), whole)


def test_the_policy_gradient_is_of_the_weight_of_the_teacher_that_is_drawn():
    """Give each row a sure teacher, so that the draw is known, and compare with the formula."""
    sure, rewards = np.array([1, 0, 1, 1]), np.array([[0.1, -2.0, -1.0, -0.5], [-0.3, -0.7, -3.0, -0.2]], np.float32)
    weights = jnp.asarray(np.where(np.arange(2)[:, None] == sure, 0.999999, 1e-6), jnp.float32)
    found = _policy_gradient(weights, jnp.asarray(rewards), jnp.ones(4), jax.random.key(0))
    reward = rewards[sure, np.arange(4)]
    advantage = (reward - reward.mean()) / np.sqrt(reward.var() + 1e-6)
    assert_close(found, -advantage * np.log(0.999999), rtol=1e-2, atol=1e-8)
    slope = jax.grad(lambda w: _policy_gradient(w, jnp.asarray(rewards), jnp.ones(4), jax.random.key(0)).sum())(weights)
    assert_close(slope[sure, np.arange(4)], -advantage, rtol=1e-4)
    assert_close(slope[1 - sure, np.arange(4)], np.zeros(4))
