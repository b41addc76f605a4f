"""Tests of the step `replay` and the order `tasks`: the buffer, updates and batches by hand."""

from typing import Any

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
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.data.order import tasks
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Batches, Phases
from jaxdistill.steps.replay import Buffer, draw_rows, reservoir

SIZE = 6


def empty(size: int = SIZE) -> Buffer:
    fields = {"index": jnp.zeros(size, jnp.int32), "mask": jnp.zeros(size)}
    return Buffer(fields, jnp.zeros((size, 2)), jnp.zeros((), jnp.int32))


def stream(first: Any, count: int, mask: Any = 1.0):
    """Return `count` rows, whose index starts at `first`, and logits that are computed from the index."""
    index = jnp.arange(count, dtype=jnp.int32) + first
    return {"index": index, "mask": jnp.broadcast_to(mask, count) * 1.0}, jnp.stack([index, -index], 1) * 1.0


add = jax.jit(reservoir)


def after(batches: int, count: int, key) -> Buffer:
    buffer = empty()
    for number in range(batches):
        buffer = add(buffer, *stream(number * count, count), jax.random.fold_in(key, number))
    return buffer


def test_a_reservoir_of_batches_is_the_reservoir_of_their_rows_one_by_one():
    """Check against a loop of Vitter's algorithm R with the same random numbers."""
    for number in range(5):
        key = jax.random.fold_in(KEY, number)
        slots: list[Any] = [None] * SIZE
        for n in range(20):
            own = jax.random.fold_in(jax.random.fold_in(key, n // 5), n % 5)
            place = n if n < SIZE else int(jax.random.randint(own, (), 0, n + 1))
            if place < SIZE:
                slots[place] = n
        found = after(4, 5, key)
        assert found.rows["index"].tolist() == slots
        assert found.logits[:, 1].tolist() == [-n for n in slots]
        assert found.seen == 20 and found.rows["mask"].all()


def test_every_row_is_kept_with_one_chance_where_a_buffer_of_the_newest_keeps_the_newest():
    kept = jax.jit(jax.vmap(lambda key: after(6, 5, key).rows["index"]))(jax.random.split(KEY, 2000))
    share = np.bincount(np.asarray(kept).ravel(), minlength=30) / 2000
    even, deviation = SIZE / 30, np.sqrt(0.2 * 0.8 / 2000)
    assert np.abs(share - even).max() < 5 * deviation
    newest = np.isin(np.arange(30), np.arange(24, 30)) * 1.0  # the shares in a buffer of the newest rows
    assert np.abs(newest - even).max() > 50 * deviation


def test_what_does_not_count_does_not_come():
    mask = jnp.asarray([1.0, 0, 1, 0, 0])
    buffer = add(empty(), *stream(0, 5, mask), KEY)
    assert buffer.seen == 2
    assert buffer.rows["index"].tolist() == [0, 2, 0, 0, 0, 0]
    assert buffer.rows["mask"].tolist() == [1, 1, 0, 0, 0, 0]
    draws = jax.jit(lambda buffer: draw_rows(buffer, KEY, 100))(buffer)
    assert set(draws.rows["index"].tolist()) == {0, 2} and draws.rows["mask"].all()
    assert_same(draws.logits[:, 0], draws.rows["index"].astype(jnp.float32))
    assert not draw_rows(empty(), KEY, 4).rows["mask"].any()


class World:
    """A step on a perceptron without a teacher, with plain gradient descent at rate 1."""

    def __init__(self, spec: str):
        self.student = perceptron(4)
        terms = {"cross_entropy": WeightedTerm(build_loss("cross_entropy"), 1.0)}
        minimised = objective(terms, registry.fusions["single"]())
        update = optimizer(registry.optimizers.build("sgd(momentum=0.0)", ""), 1.0)
        parsed = parse(spec, "")
        self.step = registry.steps.build(parsed._replace(args=(self.student, (), minimised, update)), "step")
        self.batches = [{"train": rows(seed, 8)} for seed in range(3)]
        self.start = jax.jit(self.step.init)(KEY, (), self.batches[0])
        self.update = jax.jit(self.step.update)


def cross_entropy(student, batch):
    said = speak(student, batch["image"])
    return counted(optax.softmax_cross_entropy_with_integer_labels(said, batch["label"]), batch)


def test_dark_experience_replay_by_hand():
    """Check three updates with a buffer of one row, so that the replayed row is known."""
    world = World("replay(size=1, alpha=0.7, beta=0.3)")
    ts = world.start
    for batch in world.batches:
        buffer, student = ts.state["buffer"], ts.params["student"]
        one = buffer.rows | {"mask": jnp.ones(1)}
        again = lambda own, one=one, z=buffer.logits: jnp.mean((speak(own, one["image"]) - z) ** 2)
        replayed = lambda own, one=one, again=again: 0.7 * again(own) + 0.3 * cross_entropy(own, one)
        first = buffer.seen == 0
        loss = lambda own, more=replayed, batch=batch, first=first: (
            cross_entropy(own, batch["train"]) + jnp.where(first, 0.0, more(own))
        )
        slope = jax.jit(jax.grad(loss))(student)
        met = speak(student, batch["train"]["image"])
        ts, metrics = world.update(ts, (), batch)
        assert_close(ts.params["student"], jax.tree.map(jnp.subtract, student, slope), atol=1e-5)
        now = ts.state["buffer"]
        if (now.rows["image"] != buffer.rows["image"]).any():  # the buffer stores logits from before the update
            (row,) = np.flatnonzero((batch["train"]["image"] == now.rows["image"]).all(1))
            assert_close(now.logits[0], met[row], atol=1e-5)
    assert ts.state["buffer"].seen == 18  # 3 batches of 8 rows, 2 of each masked
    assert float(metrics["replay/logits"].compute()) == pytest.approx(float(again(student)), rel=1e-4)
    assert float(metrics["replay/labels"].compute()) == pytest.approx(float(cross_entropy(student, one)), rel=1e-4)


def test_without_weight_a_buffer_changes_nothing():
    still, plain = World("replay(size=4, alpha=0.0, beta=0.0)"), World("offline")
    states = still.start, plain.start
    for batch in still.batches:
        states = still.update(states[0], (), batch)[0], plain.update(states[1], (), batch)[0]
    assert_close(states[0].params, states[1].params)


@pytest.mark.parametrize("spec", ["replay(size=0)", "replay(size=4, alpha=-1.0)"])
def test_a_buffer_that_holds_nothing_is_refused(spec):
    with pytest.raises(ConfigError, match="size must be at least 1"):
        World(spec)


# The order of tasks


LABELS = np.arange(30) % 3
RECORDS: list[dict] = [{"label": label} for label in LABELS]
PLAIN = {"batch_size": 4, "seed": 0, "transforms": (), "rows": slice(4)}
GROUPS = ((0,), (1, 2), (0, 2))


def batches(groups, steps: int, numbers: Any = range(30), **more) -> Batches:
    chosen = tasks(groups, steps).phases(LABELS, np.asarray(numbers))
    return Batches(Records(RECORDS, None), **PLAIN | more, chosen=chosen)


def test_tasks_come_one_after_the_other_and_each_is_shuffled_over_and_over():
    run = batches(GROUPS, steps=6)
    seen = [run[number] for number in range(30)]
    for number, batch in enumerate(seen):
        assert set(batch["label"].tolist()) <= set(GROUPS[min(number // 6, 2)])
    first = np.concatenate([batch["index"] for batch in seen[:5]])
    assert sorted(first[:10]) == sorted(first[10:]) == np.flatnonzero(LABELS == 0).tolist()
    assert first[:10].tolist() != first[10:].tolist()
    second = np.concatenate([batch["index"] for batch in seen[6:11]])
    assert sorted(second) == np.flatnonzero(LABELS != 0).tolist()
    assert_same(run[13], batches(GROUPS, steps=6)[13])  # a batch depends on its number alone
    half = batches(GROUPS, steps=6, rows=slice(2, 4))
    assert_same(half[13], {field: x[2:] for field, x in run[13].items()})


def test_the_same_records_come_in_another_order_in_each_task():
    run = batches((GROUPS[0], GROUPS[0]), steps=2, batch_size=10, rows=slice(10))
    first, second = run[0]["index"].tolist(), run[2]["index"].tolist()
    assert sorted(first) == sorted(second) and first != second


def test_one_task_of_everything_is_the_order_without_tasks():
    whole = Batches(Records(RECORDS, None), **PLAIN)
    for number in (0, 7, 20):
        assert_same(batches(((0, 1, 2),), steps=3)[number], whole[number])


def test_tasks_keep_to_the_records_that_were_chosen():
    chosen = [0, 3, 4, 7, 8]
    run = batches(((0,), (1, 2)), steps=2, numbers=chosen)
    assert {n for number in range(6) for n in run[number]["index"].tolist()} == set(chosen)
    with pytest.raises(ValueError, match=r"no record has a label of \(2,\)"):
        batches(((0,), (2,)), steps=2, numbers=[0, 1, 3])


def test_the_last_phase_goes_on():
    run = Batches(Records(RECORDS, None), **PLAIN, chosen=Phases((np.arange(5),), 1))
    assert {n for number in range(9) for n in run[number]["index"].tolist()} == set(range(5))


@pytest.mark.slow
def test_a_run_of_tasks_is_resumed_to_the_bit_and_its_teacher_sees_everything_at_once(tmp_path):
    words = ["--config.data.order=tasks(groups=((0, 1), (2, 3)), steps=10)", "--config.control=False"]
    words += ["--config.step=replay(size=12)", "--config.rate=0.01", "--config.objective.kd.weight=0.5"]
    with runs.compilation_cache(tmp_path / "programs"):
        assert runs.run(tmp_path / "whole", *words, "--config.steps=20") == 0
        assert runs.run(tmp_path / "parts", *words, "--config.steps=10") == 0
        assert runs.run(tmp_path / "parts", *words, "--config.steps=20") == 0
    whole, parts = (runs.saved(tmp_path / name / "student") for name in ("whole", "parts"))
    assert whole["state/buffer/seen"] == 20 * 32
    assert set(whole["state/buffer/rows/label"].tolist()) == {0, 1, 2, 3}
    assert runs.differences(whole, parts) == []
    rows = {row["name"]: row["accuracy"] for row in runs.results(tmp_path / "whole")["rows"]}
    assert rows["teacher big"] > 0.6  # guessing gives 0.25


def test_each_task_has_an_order_of_its_own():
    run = batches(((0, 1, 2), (0, 1, 2)), steps=15)
    index = lambda first, last: np.concatenate([run[number]["index"] for number in range(first, last)]).tolist()
    assert sorted(index(0, 15)) == sorted(index(15, 30)) and index(0, 15) != index(15, 30)


def test_a_full_buffer_replays_all_its_places():
    buffer = after(4, 5, KEY)
    drawn = draw_rows(buffer, KEY, 200)
    assert set(drawn.rows["index"].tolist()) == set(buffer.rows["index"].tolist()) and buffer.seen > SIZE
