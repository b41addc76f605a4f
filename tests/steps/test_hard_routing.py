"""Tests of hard routing: only the selected teacher runs for a row, and the gate learns as if all teachers ran."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from domains import BOTH, CLASSES, GATE, WIDTH, rows, talker, trained, world
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdistill.core import registry
from jaxdistill.core.collectives import ROWS
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Fusion
from jaxdistill.core.types import Variables
from jaxdistill.fusion.mixture import mix
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.steps.dispatch import dispatch_rows

KEY = jax.random.key(0)


def test_every_row_hears_its_own_teacher_and_no_other_runs_on_it():
    calls: list[list[int]] = [[], [], []]
    rules = [
        lambda batch, k=k: jax.nn.softmax(batch["image"].reshape(-1, WIDTH)[:, :CLASSES] * (k + 1)) for k in range(3)
    ]
    teachers = [talker(rule, calls[k]) for k, rule in enumerate(rules)]
    batch, choice = rows(0, 50), np.int32(np.random.default_rng(1).choice([0, 2], 50, p=[0.8, 0.2]))
    run = jax.jit(lambda batch, choice: dispatch_rows(teachers, [Variables({}, {})] * 3, batch, choice, KEY))
    said = jax.block_until_ready(run(batch, choice))
    every = np.log(jax.jit(lambda batch: jnp.stack([rule(batch) for rule in rules]))(batch))
    assert_close(said.logits, every[choice, np.arange(50)])
    jax.effects_barrier()
    chosen = np.bincount(choice, minlength=3)
    assert calls[1] == [] and [sum(x) for x in calls] == [8 * -(-n // 8) for n in chosen]


@pytest.mark.parametrize("choice", [[1] * 5, [0, 1, 0, 1, 2]])
def test_few_rows_are_dispatched_too(choice):
    teachers = [talker(lambda batch, k=k: jnp.full((batch["image"].shape[0], CLASSES), k + 1.0)) for k in range(3)]
    run = jax.jit(lambda batch, choice: dispatch_rows(teachers, [Variables({}, {})] * 3, batch, choice, KEY))
    said = run(rows(0, 5), np.int32(choice))
    assert_close(np.asarray(said.logits)[:, 0], np.log(np.asarray(choice) + 1.0))


def loudest() -> Fusion:
    """Build a gate whose weights are one-hot in rows where `hears_one` is set, and soft in all others."""
    whole = registry.fusions.build(GATE, "fusion")

    def apply(params, state, signals, *, key):
        fused, state = whole.apply(params, state, signals, key=key)
        one = jax.nn.one_hot(jnp.argmax(fused.weights, axis=0), len(fused.weights), axis=0)
        heard = mix(signals, jnp.where(signals.batch["hears_one"] != 0, one, fused.weights))
        return heard, state

    return whole._replace(apply=apply)


def test_hard_routing_is_a_gate_of_which_a_row_hears_one():
    """Check that student and gate learn as if all teachers ran, with one-hot weights for the student."""
    hears = lambda number: np.full(rows(0)["mask"].shape, number, np.float32)
    batches = {"train": rows(0) | {"hears_one": hears(1)}, "calibration": rows(1) | {"hears_one": hears(0)}}
    given = (("routing", loudest()), ("routing(hard=True)", GATE))
    (soft, hard) = (world(spec, BOTH, gate) for spec, gate in given)
    after = [trained(step, frozen, batches, 20)[0] for step, frozen, _ in (soft, hard)]
    assert_close(after[0].params, after[1].params, rtol=1e-4, atol=1e-5)
    assert np.abs(after[1].params["fusion"]["head/kernel"]).max() > 0.01


def test_a_gate_that_hears_one_alone_is_refused():
    with pytest.raises(ConfigError, match=r"top=1: .* nothing would train the gate\. .* step='routing\(hard=True\)'"):
        registry.fusions.build("gate(top=1)", "fusion")


@pytest.mark.slow
def test_hard_routing_on_a_mesh_is_that_on_one_device():
    """Check that an update on 8 devices equals that on one, with a gate that reads the student's outputs."""
    step, frozen, _ = world("routing(hard=True)", BOTH, "gate(inputs=('student', 'image'), width=8)")
    batches = {"train": rows(0), "calibration": rows(1)}
    start, watched = trained(step, frozen, batches, 40)  # at the start, the gate selects the first teacher for all rows
    assert 0.3 < watched["gate/share/0"] < 0.7 and watched["gate/entropy"] < 0.4
    one = jax.device_get(jax.jit(step.update)(start, frozen, batches))
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        laid = jax.device_put(batches, NamedSharding(mesh, ROWS))
        found = jax.device_get(jax.jit(step.update)(jax.device_put(start, NamedSharding(mesh, P())), frozen, laid))
    assert_close((found[0].params, found[1]), (one[0].params, one[1]), rtol=1e-4, atol=1e-5)
