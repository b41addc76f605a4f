"""Tests of the banks of the loss `crd`: the same on every device layout, and unchanged to the bit by a resumed run."""

import itertools

import jax
import numpy as np
import pytest
import runs
from checks import assert_close, assert_same
from examples import slow
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.types import Variables
from jaxdistill.evaluation.evaluator import evaluator
from jaxdistill.losses.relations import crd
from jaxdistill.parallel.compile import jit_engine, shard_variables
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.parallel.pmap import pmap_engine
from jaxdistill.run.preemption import Preemption

KEY = jax.random.key(0)


# Layouts and runs

LAYOUTS = {"one": (1, 1, 1), "data": (8, 1, 1), "mixed": (2, 2, 2), "pmap": None}
RECORDS = 64


def batches() -> list[dict[str, np.ndarray]]:
    """Build three batches of 32 rows, of which the first 19 are unmasked; records repeat, within a batch too."""
    draw = np.random.default_rng(0)
    mask = (np.arange(32) < 19).astype(np.float32)
    image = lambda: draw.integers(0, 255, (32, 8, 8, 1), dtype=np.uint8)
    index = lambda: draw.integers(0, RECORDS, 32).astype(np.int32)
    label = draw.integers(0, 10, 32, dtype=np.int32)
    return [{"image": image(), "label": label, "index": index(), "mask": mask} for _ in range(3)]


def three_steps(layout: str):
    """Return the train state after three steps; in numpy, its params, its state and each step's metrics; the engine."""
    student, teacher = (registry.models.build(f"mlp(widths={w}, classes=10)", "") for w in ((16, 24, 16), (24, 16, 32)))
    terms = {"crd": WeightedTerm(build_loss(f"crd(records={RECORDS}, negatives=24, width=8)"))}
    update = optimizer(registry.optimizers.build("sgd(momentum=0.0)", ""), 0.01)
    step = registry.steps["offline"](student, (teacher,), objective(terms, registry.fusions["single"]()), update)
    evaluate = evaluator(student, (teacher,), registry.fusions["single"](), ())
    rows = batches()
    values = (Variables(*jax.jit(teacher.init)(KEY, rows[0])),)
    shapes = {"train": {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in rows[0].items()}}
    if LAYOUTS[layout] is None:
        engine = pmap_engine(step, evaluate, jax.devices()[:8], values, values, shapes)
    else:
        mesh = make_mesh(LAYOUTS[layout])
        placed = tuple(shard_variables(value, mesh) for value in values)
        engine = jit_engine(step, evaluate, mesh, placed, placed, shapes)
    ts = engine.init(KEY, engine.put({"train": jax.tree.map(np.zeros_like, rows[0])}))
    means = []
    for each in rows:
        ts, metrics = engine.update(ts, engine.put({"train": each}))
        means.append({name: metric.compute() for name, metric in jax.device_get(metrics).items()})
    return ts, jax.device_get((engine.export(ts).params, engine.export(ts).state, means)), engine


@pytest.fixture(scope="module")
def reference():
    return three_steps("one")[1]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [slow("data"), slow("mixed"), "pmap"])
def test_banks_z_and_what_is_learned_are_the_same_on_every_layout(layout, reference):
    ts, found, engine = three_steps(layout)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(reference), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(y, x, atol=1e-5, rtol=1e-4, err_msg=jax.tree_util.keystr(path))
    named = {index for rows in batches() for index in rows["index"][:19].tolist()}
    moved = np.abs(np.linalg.norm(reference[1]["terms"]["crd"]["student/bank"], axis=1) - 1) < 1e-5
    assert set(np.flatnonzero(moved)) == named
    if layout == "pmap":  # every device has the same copy
        copies = np.asarray(ts.state["terms"]["crd"]["student/bank"])
        assert_same(copies, np.broadcast_to(copies[:1], copies.shape))
    else:
        bank = ts.state["terms"]["crd"]["student/bank"]
        assert bank.sharding.shard_shape(bank.shape) == (RECORDS // LAYOUTS[layout][0], 8)
    assert engine.compiled()["update"] == 1


@pytest.mark.slow
def test_banks_survive_a_resume_to_the_bit(tmp_path, monkeypatch):
    """Check a run that is stopped after 13 of 40 steps, in the second pass over the data, and resumed."""
    words = (
        "--config.objective.crd.term=crd(records=250, negatives=16, width=8)",
        "--config.control=False",
        "--config.teachers.big.steps=10",
    )
    with runs.registries_as_found(), runs.compilation_cache(tmp_path / "programs"):
        assert runs.run(tmp_path / "whole", *words) == 0
        turns = itertools.count(1)
        with monkeypatch.context() as patch:
            patch.setattr(Preemption, "should_stop", lambda self: next(turns) == 10 + 13)
            assert runs.run(tmp_path / "halves", *words) == 0
        half = runs.saved(tmp_path / "halves" / "student")
        assert half["step"] == 13
        assert runs.run(tmp_path / "halves", *words) == 0
    whole, halves = (runs.saved(tmp_path / name / "student") for name in ("whole", "halves"))
    assert runs.differences(whole, halves) == []
    banks = {name for name in whole if name.endswith("/bank")}
    assert banks == {"state/terms/crd/student/bank", "state/terms/crd/teacher/bank"}
    for name in banks:
        assert_close(np.linalg.norm(whole[name], axis=1), np.ones(250))  # every record has been written
        assert (whole[name] != half[name]).any()
    for side in ("student", "teacher"):
        name = f"state/terms/crd/{side}/log_z"
        assert np.isfinite(whole[name]) and whole[name] == half[name]


def test_record_0_is_written_though_padded_rows_are_numbered_0():
    rows, counts = np.float32([[0.0, 1.0], [0.6, 0.8]]), np.array([True, False])
    new = jax.jit(lambda *given: crd.update_bank(*given, 0.5))(
        np.eye(2, dtype=np.float32), rows, np.int32([0, 0]), counts
    )
    assert_close(np.asarray(new)[0], np.sqrt([0.5, 0.5]))
