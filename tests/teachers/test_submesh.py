"""Tests of a teacher on its own devices: it trains the student as a teacher beside it does, one batch ahead."""

import io
import itertools
import json

import jax
import numpy as np
import pytest
import runs
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

import jaxdistill
from jaxdistill.core.collectives import ROWS
from jaxdistill.core.errors import ConfigError, Stopped
from jaxdistill.core.types import Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.parallel.compile import move_to_mesh, shard_variables
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.run.config import differ
from jaxdistill.run.distill import check_config
from jaxdistill.run.plan import ahead, topology
from jaxdistill.run.preemption import Preemption
from jaxdistill.run.resolve import resolve
from jaxdistill.teachers import submesh

OWN = "submesh(devices=2, layers=(0, 1))"
TERMS = {"kd": {}, "hidden": {"weight": 0.1}}


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.compilation_cache(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Train a teacher, and return the config of a student that learns beside it, with the result of its run."""
    workdir = tmp_path_factory.mktemp("teacher")
    config = differ(runs.load(), steps=10, control=False, evaluate={"every": 5}, logging={"every": 1})
    distilled(config, workdir)
    teacher = {**config.teachers["big"].to_dict(), "steps": 0, "checkpoint": str(workdir / "teachers" / "big")}
    config = differ(config, teachers={"big": teacher}, objective=TERMS, mesh={"data": 2})
    return config, distilled(config, workdir / "beside")


@pytest.fixture(scope="module")
def own(taught, tmp_path_factory):
    """Return the result of the same run with the teacher on its own devices, not interrupted."""
    return distilled(placed(taught[0]), tmp_path_factory.mktemp("apart"))


def placed(config, own=OWN, **differences):
    return differ(config, teachers={"big": {**config.teachers["big"].to_dict(), "placement": own}}, **differences)


def distilled(config, workdir):
    return jaxdistill.distill(config, workdir, console=Console(file=io.StringIO()))


def unlike(found, wanted) -> float:
    """Return the largest difference of two runs in the losses of steps, student params, and rows of the report."""

    def said(run):
        losses = [line["loss"] for line in runs.log(run.workdir / "student").train]
        told = [{k: v for k, v in row.items() if k not in ("name", "latency_ms", "latency_range")} for row in run.rows]
        return losses, told, jax.device_get(run.variables["student"].params)

    apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), said(found), said(wanted))
    return max(jax.tree.leaves(apart))


def test_a_teacher_apart_teaches_as_it_does_beside_its_student(taught, own):
    assert unlike(own, taught[1]) < 1e-5
    kernels = [own.variables[name].params["layers/1/kernel"].sharding for name in ("teacher big", "student")]
    assert kernels[0].device_set == set(jax.devices()[-2:]) and not kernels[0].is_fully_replicated
    assert kernels[1].device_set == set(jax.devices()[:2])
    assert json.loads((own.workdir / "student/result.json").read_text())["compiled"] == {"update": 1, "evaluate": 1}


@pytest.mark.slow
def test_so_it_does_on_more_devices_than_its_student(taught, tmp_path):
    config = placed(taught[0], "submesh(devices=4, layers=(0, 1))", mesh={"data": 1, "fsdp": 2})
    assert unlike(distilled(config, tmp_path), taught[1]) < 1e-5


def test_what_it_said_of_another_batch_would_teach_something_else(taught, tmp_path, monkeypatch):
    """Check that the result differs if the teacher's outputs come one batch late."""
    late = [None]

    def broken(self):
        rows = next(self._batches)
        said = {name: x for name, x in self._query(rows).items() if name not in rows}
        before, late[0] = late[0] or said, said
        return {**rows, **before}

    monkeypatch.setattr(submesh.QueryPrefetcher, "__next__", broken)
    config, beside = taught
    assert unlike(distilled(placed(config), tmp_path), beside) > 1e-3


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_bit(taught, own, tmp_path, monkeypatch):
    """Check that after a resume, the teacher runs again on the batch that it had computed ahead."""
    config, turns = placed(taught[0]), itertools.count(1)
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="saved at step 7 of 10"):
        patch.setattr(Preemption, "should_stop", lambda self: next(turns) == 7)
        distilled(config, tmp_path)
    found = distilled(config, tmp_path)
    assert runs.differences(*(runs.saved(each.workdir / "student") for each in (found, own))) == []


@pytest.mark.slow
def test_it_may_be_trained_here_and_a_control_is_measured_beside_it(taught, tmp_path):
    config, beside = taught
    trained = {**config.teachers["big"].to_dict(), "steps": 40, "checkpoint": "", "placement": OWN}
    found = distilled(differ(config, teachers={"big": trained}, control=True, mesh={"data": 1}), tmp_path)
    *same, control = found.rows
    assert unlike(found._replace(rows=same), beside) < 1e-5
    assert 0 < control["agreement"] <= 1 and len(found.variables["teacher big"].params["head/bias"].devices()) == 2


def test_a_batch_is_asked_about_before_the_one_before_it_is_learned_from():
    class Numbers:
        at = 0

        def __next__(self):
            self.at += 1
            return {"number": self.at - 1}

        def get_state(self):
            return self.at

        def set_state(self, at):
            self.at = at

    asked = []
    stream = submesh.QueryPrefetcher(
        Numbers(), lambda batch: asked.append(batch["number"]) or {**batch, "said": batch["number"]}
    )
    assert stream.get_state() == 0
    for number in range(3):
        assert next(stream) == {"number": number, "said": number}
        assert asked == list(range(number + 2))
        assert stream.get_state() == number + 1
    stream.set_state(1)
    assert stream.get_state() == 1 and next(stream) == {"number": 1, "said": 1}


def test_outputs_move_from_mesh_to_mesh_by_rows():
    own, mesh = make_mesh((1, 2, 1), jax.devices()[-2:]), make_mesh((2, 1, 3))
    x = np.arange(24.0).reshape(8, 3)
    found = move_to_mesh(jax.device_put(x, NamedSharding(own, PartitionSpec())), mesh)
    np.testing.assert_array_equal(found, x)
    assert found.sharding == NamedSharding(mesh, ROWS)


def test_every_teacher_has_devices_of_its_own(taught, tmp_path):
    entry = taught[0].teachers["big"].to_dict()
    own = {
        "big": {**entry, "placement": "submesh(devices=4)"},
        "two": {**entry, "placement": "submesh(devices=2, top=2)"},
    }
    planned = check_config(
        differ(taught[0], teachers=own, fusion="average()", objective={"kd": {}}, mesh={"data": -1}), tmp_path
    )
    assert tuple(planned.mesh.shape.values()) == (2, 1, 1)
    devices = [list(each.mesh.devices.flat) for each in planned.teachers.values()]
    assert devices == [jax.devices()[4:], jax.devices()[2:4]]
    assert planned.teachers["two"].fields("train") == {
        "placement/two/top": ((2,), "float32"),
        "placement/two/tail": ((), "float32"),
        "placement/two/classes": ((2,), "uint16"),
    }


def test_a_plan_has_one_mesh():
    config = placed(runs.load())
    with pytest.raises(ConfigError, match=r"^teachers\.big\.placement: a mesh beside the student's is not planned"):
        ahead.plan(config, topology.Topology("", jax.devices(), None))


def test_of_the_test_examples_all_logits_are_sent(taught):
    resolved = resolve(differ(placed(taught[0], own="submesh(devices=2, top=2)"), objective={"kd": {}}), jax.devices())
    teacher = resolved.teachers["big"]
    batch = {name: np.zeros((32, *x.shape[1:]), x.dtype) for name, x in resolved.data.shapes["train"].items()}
    values = shard_variables(Variables(*jax.jit(teacher.network.init)(jax.random.key(0), batch)), teacher.mesh)
    sent = {stream: teacher.query(stream, values, resolved.mesh)(batch) for stream in ("train", TEST)}
    kinds = {stream: {name.rpartition("/")[2] for name in fields} for stream, fields in sent.items()}
    assert kinds == {"train": {"top", "tail", "classes"}, TEST: {"logits"}}


def test_a_batch_gets_the_outputs_of_every_teacher():
    joined = submesh.join_queries({"a": lambda batch: {"x": batch["z"] + 1}, "b": lambda batch: {"y": 2}})
    assert joined({"z": 0}) == {"z": 0, "x": 1, "y": 2}
