"""Tests of runs with several processes: they end like one process, stop together, and resume after one is killed."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import runs

from jaxdistill.core.checkpoint import Checkpoints
from jaxdistill.core.manifest import flatten, manifests
from jaxdistill.run import failures
from jaxdistill.run.config import override, parse_changes
from jaxdistill.run.plan import ahead, topology


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.compilation_cache(tmp_path_factory.getbasetemp() / "programs"):
        yield


@pytest.fixture(autouse=True)
def ended():
    yield
    runs.end_processes()


# Gloo, which connects the processes, prints these pieces one by one, so that lines of two threads may be mixed.
GLOO = r"\[Gloo\] Rank |\d+| is connected to | peer ranks\. |Expected number of connected peer ranks is : "


def said(out: str) -> str:
    """Return what a process printed, without the lines of Gloo."""
    return re.sub(GLOO, "", out).strip()


def assert_near_end(workdir: Path, reference: Path) -> None:
    """Check that two runs end with nearly the same arrays; float32 sums in another order differ by rounding."""
    for stage in runs.STAGES:
        mine, its = runs.saved(workdir / stage), runs.saved(reference / stage)
        assert mine.keys() == its.keys()
        for name in its:
            np.testing.assert_allclose(mine[name], its[name], rtol=1e-6, atol=1e-6, err_msg=f"{stage} {name}")


MESHES = {"data and fsdp": ("--config.mesh.data=2", "--config.mesh.fsdp=2"), "tensor": ("--config.mesh.tensor=4",)}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_end_like_one(mesh, tmp_path):
    words = *MESHES[mesh], "--config.rate=0.01", "--config.optimizer=sgd()"
    runs.finish(runs.spawn(tmp_path / "one", *words, devices=4))
    first, second = map(runs.finish, runs.together(tmp_path / "two", *words))
    assert "The student reaches" in first[0]
    assert said(second[0]) == ""
    assert_near_end(tmp_path / "two", tmp_path / "one")
    for stage in runs.STAGES:
        assert [line["step"] for line in runs.log(tmp_path / "two" / stage).eval] == [10, 20, 30, 40]
    assert [row["name"] for row in runs.results(tmp_path / "two")["rows"]] == ["teacher big", "student", "control"]


@pytest.mark.slow
def test_two_processes_take_a_teacher_from_a_checkpoint_of_one(tmp_path):
    reference = tmp_path / "one"
    assert runs.run(reference) == 0
    words = (
        *MESHES["data and fsdp"],
        "--config.steps=10",
        f"--config.teachers.big.checkpoint={reference / runs.STAGES[0]}",
    )
    for _, err in map(runs.finish, runs.together(tmp_path / "two", *words)):
        assert "Error" not in err
    teacher, before = (runs.results(workdir)["rows"][0] for workdir in (tmp_path / "two", reference))
    for metric in ("accuracy", "nll", "ece", "parameters"):
        assert teacher[metric] == pytest.approx(before[metric], rel=1e-5)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    slowly = (word.replace("0.02", "0.1") for word in runs.SLOWLY)  # processes take a second to agree where to stop
    words = *MESHES["data and fsdp"], *slowly, "--config.optimizer=sgd()"
    runs.finish(runs.spawn(tmp_path / "one", *words, devices=4))
    workdir = tmp_path / "two"
    processes = runs.together(workdir, *words)
    runs.meet(processes[0], (workdir / "student/checkpoints/manifests/10.json").is_file)
    processes[1].send_signal(signal.SIGTERM)  # one process gets the signal, and all stop
    for _, err in map(runs.finish, processes):
        assert "stopped: student: saved at step" in err
    assert 10 < runs.saved(workdir / "student")["step"] < 40
    first, second = map(runs.finish, runs.together(workdir, *words))
    assert "teacher big  was already finished" in first[0]
    assert "student  resumed at step" in first[0]
    assert said(second[0]) == ""
    names = {each["run"] for stage in runs.STAGES for each in manifests(workdir / stage / "checkpoints").values()}
    assert names == {json.loads((workdir / "config.json").read_text())["run"]}
    assert_near_end(workdir, tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(("count", "victim"), [(2, 1), (4, 0)])
def test_a_process_that_is_killed_costs_nothing(count, victim, tmp_path):
    """Check that all processes end if one is killed, and that the run resumes to the same bits, or elsewhere nearly."""
    mesh = "--config.mesh.data=2", f"--config.mesh.fsdp={count}"
    words = *runs.SLOWLY, "--config.optimizer=sgd()"
    for _, err in map(runs.finish, runs.together(tmp_path / "whole", *words, *mesh, count=count)):
        assert "Error" not in err
    workdir = tmp_path / "killed"
    processes = runs.together(workdir, *words, *mesh, count=count)
    runs.meet(processes[0], (workdir / "student/checkpoints/manifests/20.json").is_file)
    processes[victim].kill()
    for process in processes:
        _, err = process.communicate(timeout=150)  # JAX waits 100 s for a sign of life
        if process is not processes[victim]:
            assert process.returncode not in (0, -signal.SIGKILL)
            assert "another task died" in err or "lost contact" in err

    assert not (workdir / "student/result.json").exists()
    shutil.copytree(workdir, tmp_path / "elsewhere")
    assert_restored_elsewhere(tmp_path / "elsewhere/student", words)
    first, *others = map(runs.finish, runs.together(workdir, *words, *mesh, count=count))
    assert "student  resumed at step" in first[0] and all(said(out) == "" for out, _ in others)
    runs.assert_same_end(workdir, tmp_path / "whole")
    out, _ = runs.finish(runs.spawn(tmp_path / "elsewhere", *words, "--config.mesh.tensor=2", devices=2))
    assert "student  resumed at step" in out
    assert_near_end(tmp_path / "elsewhere", workdir)


def assert_restored_elsewhere(stage: Path, words: tuple[str, ...]) -> None:
    """Check that one process restores the newest checkpoint to the same bits, sharded over eight devices."""
    config = override(
        runs.load(), [*parse_changes(words), ("mesh.data", "1"), ("mesh.fsdp", "4"), ("mesh.tensor", "2")]
    )
    engine, *_ = ahead.prepare(config, topology.find("cpu:8", 1))
    with Checkpoints(stage / "checkpoints") as checkpoints:
        restored = checkpoints.restore(engine.abstract)
    step, found = restored.step, flatten(restored.tree)
    wanted = flatten(engine.abstract)
    assert all(found[name].sharding == wanted[name].sharding for name in wanted)
    split = [name for name in wanted if not wanted[name].sharding.is_fully_replicated]
    assert split
    here = {name: np.asarray(x) for name, x in found.items()}
    assert runs.differences(here, runs.saved(stage, step)) == []


def test_a_process_that_has_lost_the_others_ends_at_once(monkeypatch, capsys):
    """Check that the process calls `os._exit`: in an ordinary exit, JAX would wait for the lost processes."""

    def lost():
        raise jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection closed by peer\nmore")

    assert failures.run(lost) == 2  # a run of one process cannot lose another one
    capsys.readouterr()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(failures.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        failures.run(lost)
    assert end.value.code == 5
    said = capsys.readouterr().err
    assert said.startswith("error: the processes of this run lost contact (INTERNAL: Gloo all-reduce failed")
    assert "more" not in said and said.endswith("resume from the last checkpoint.\n")
