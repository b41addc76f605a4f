"""Tests of the loss `taid`: published code over four steps, the coefficient by hand, and the state on all devices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import terms
from batches import signals
from checks import assert_close
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.collectives import PMAP_AXIS
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.schedules import Horizon
from jaxdistill.core.types import Outputs
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.logits.taid import interpolated_cross_entropy, next_state

KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "logits.npz")


def drawn(seed: int) -> tuple[Any, Any]:
    student, teacher = np.float32(2 * np.random.default_rng(seed).normal(size=(2, 4, 6)))
    return student, teacher


def softmax(z: Any) -> np.ndarray:
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)


def test_taid_equals_the_published_code_over_its_steps():
    """Check four steps: after the first, the coefficient is the floor, and after each later one it is above."""

    line = "linear(start=0.4, end=1.0)"
    with jax.enable_x64(True):
        term = terms.loss(f"taid(floor={line}, rate=0.3, decay=0.99)", "objective.taid.term", Horizon(20, 10.0))
        minimised = objective({"taid": WeightedTerm(term)}, registry.fusions.build("single", ""))
        wide = replace(signals(), temperature=jnp.ones(()), teacher=None, params={"student": {}, "teachers": ({},)})

        @jax.jit
        def update(state, student, teacher, step):
            seen = replace(wide, teachers=(Outputs(teacher),), mask=jnp.ones(student.shape[:-1]), batch={}, step=step)

            def mean(student):
                given = {"train": replace(seen, student=Outputs(student))}
                means, state_after = minimised.apply(params, state, given, key=KEY)
                return minimised.total(means, step), state_after

            return jax.value_and_grad(mean, has_aux=True)(student)

        first = {key: GOLDEN[f"taid/0/{key}"] for key in ("student", "teacher")}
        seen = replace(
            wide,
            student=Outputs(jnp.asarray(first["student"])),
            teachers=(Outputs(jnp.asarray(first["teacher"])),),
            mask=jnp.ones(first["student"].shape[:-1]),
            batch={},
            step=jnp.asarray(0, jnp.int32),
        )
        params, state = minimised.init(KEY, {"train": seen})
        for step in range(4):
            said = {key: GOLDEN[f"taid/{step}/{key}"] for key in ("student", "teacher", "before", "after", "momentum")}
            assert np.abs(state["terms"]["taid"]["coefficient"] - said["before"]) < 1e-12
            (value, state), gradient = update(state, said["student"], said["teacher"], jnp.asarray(step, jnp.int32))
            after = state["terms"]["taid"]
            assert np.abs(value - GOLDEN[f"taid/{step}/value"]) < 1e-12
            assert np.abs(gradient - GOLDEN[f"taid/{step}/grad"]).max() < 1e-12
            assert np.abs(after["coefficient"] - said["after"]) < 1e-12
            assert np.abs(after["momentum"] - said["momentum"]) < 1e-12
            assert (after["coefficient"] > 0.4 + 0.6 * step / 20 + 1e-6) == (step > 0)


def taid_run(spec: str, sizes: tuple[float, ...], **fields: Any) -> list[float]:
    """Return the coefficient before each step; the student's logits are multiplied by one of `sizes` at each step."""
    minimised = objective({"taid": WeightedTerm(build_loss(spec))}, registry.fusions.build("single", ""))
    seen, found = replace(signals(), **fields), []
    params, state = jax.jit(lambda: minimised.init(KEY, {"train": seen}))()

    @jax.jit
    def update(state, size, step):
        student = replace(seen.student, logits=size * seen.student.logits)
        return minimised.apply(params, state, {"train": replace(seen, student=student, step=step)}, key=KEY)[1]

    for number, size in enumerate(sizes):
        found.append(float(state["terms"]["taid"]["coefficient"]))
        state = update(state, np.float32(size), np.int32(number))
    return found


def test_taid_begins_at_its_floor_and_never_falls_below():
    line = "floor=linear(start=0.4, end=1.0)"  # over 100 steps
    floors = [0.4, 0.4, 0.406, 0.412, 0.418]
    assert_close(taid_run(f"taid({line}, rate=0.0)", (1.0,) * 5), floors)
    ahead = taid_run(f"taid({line}, rate=0.5)", (1.0,) * 5)
    assert ahead[:2] == pytest.approx([0.4, 0.4]) and (np.diff(ahead[1:]) > 0.05).all() and max(ahead) < 1
    assert max(taid_run("taid(floor=linear(start=0.4, end=0.6), rate=0.9)", (1.0,) * 9)) == pytest.approx(0.6)


def test_taid_hurries_while_its_loss_falls():
    state = {name: np.float32(x) for name, x in {"coefficient": 0.4, "momentum": 0.0, "loss": 2.0}.items()}
    move = jax.jit(lambda *given: next_state(*given, 1.0, rate=0.5, decay=0.0))
    after = lambda loss: move(state, np.float32(loss), np.float32(0.4))
    by_hand = lambda change: 0.4 + 0.5 * 0.6 / (1 + np.exp(-change))
    for loss, change in ((1.0, 0.5), (2.0, 0.0), (8.0, -3.0)):
        assert_close(after(loss), {"coefficient": by_hand(change), "momentum": change, "loss": loss})


def test_what_taid_remembers_is_the_same_on_every_device():
    minimised = objective({"taid": WeightedTerm(build_loss("taid(floor=0.4)"))}, registry.fusions.build("single", ""))
    seen = replace(signals(batch=(16,)), mask=jnp.asarray(np.arange(16) < 11))
    params, state = minimised.init(KEY, {"train": seen})
    assert not any(x.weak_type for x in jax.tree.leaves(state))
    given = lambda seen: minimised.apply(params, state, {"train": seen}, key=KEY)
    after = lambda seen: given(seen)[1]["terms"]["taid"]
    rows = lambda seen: (seen.student, seen.teachers, seen.batch, seen.mask)
    join = lambda r: replace(seen, student=r[0], teachers=r[1], batch=r[2], mask=r[3])
    split = jax.tree.map(lambda x: np.reshape(x, (8, 2, *x.shape[1:])), rows(seen))
    apart = jax.pmap(lambda r: after(join(r)), axis_name=PMAP_AXIS)(split)
    whole = jax.jit(after)(seen)
    assert not any(x.weak_type for x in jax.tree.leaves(whole)) and whole["loss"] > 0.1
    assert_close(apart, jax.tree.map(lambda x: np.broadcast_to(x, (8,)), whole))
    assert_close(whole["loss"], given(seen)[0]["taid"].compute())  # the mean is over the rows that count


def test_a_batch_of_padding_does_not_move_taid():
    still = taid_run("taid(floor=0.4, rate=0.5)", (1.0,) * 4, mask=jnp.zeros(6))
    assert still == pytest.approx([0.4] * 4)


def test_taids_gradient_is_towards_a_target_that_stays():
    student, teacher = drawn(15)
    slope = jax.jit(jax.grad(lambda s, t: interpolated_cross_entropy(s, t, 0.4).sum()))
    target = softmax(0.6 * np.asarray(student, np.float64) + 0.4 * np.asarray(teacher, np.float64))
    assert_close(slope(student, teacher), softmax(student) - target, rtol=1e-4)
    assert np.abs(slope(student, student)).max() < 1e-6


def test_the_same_teacher_is_taid_at_its_end():
    student, teacher = drawn(16)
    p = softmax(teacher)
    entropy = -(p * np.log(p)).sum(-1)
    both = jax.jit(lambda s, t: (interpolated_cross_entropy(s, t, 1.0), kl_divergence(s, t)))
    found, divergence = jax.device_get(both(student, teacher))
    assert_close(found, divergence + entropy)
