"""A run that is stopped, killed or spread over processes ends with the same bits as one that is not."""

import itertools
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import runs

from jaxdistill.interrupts import Interrupts

STAGES = ("teachers/big", "student", "control")
SLOWLY = (  # a batch in 20 ms, so that a signal meets what it is meant for
    "--config.data.augment=('shift(pixels=1)', 'pause(seconds=0.02)')",
    "--config.teachers.big.augment=('pause(seconds=0.02)',)",
)


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.registries_as_found(), runs.compilation_cache(tmp_path_factory.getbasetemp() / "programs"):
        yield


@pytest.fixture(autouse=True)
def ended():
    yield
    runs.end_processes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(runs.spawn(workdir, *SLOWLY))
    return workdir


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[str, str]:
    """What a process that must succeed has printed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out, err


def meet(process: subprocess.Popen, moment: Callable[[], bool], timeout: float = 240) -> None:
    """Waits until something has come about that a process does."""
    end = time.monotonic() + timeout
    while not moment():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.001)


def assert_same_end(workdir: Path, reference: Path) -> None:
    """Parameters, state, optimiser, key and step of every stage are the same to the bit."""
    for stage in STAGES:
        assert runs.differences(runs.saved(workdir / stage), runs.saved(reference / stage)) == [], stage


def test_a_run_stopped_by_sigterm_exits_0_and_ends_the_same(uninterrupted, tmp_path):
    process = runs.spawn(tmp_path, *SLOWLY)
    meet(process, (tmp_path / "student/checkpoints/manifests/10.json").is_file)
    process.send_signal(signal.SIGTERM)
    _, err = finish(process)
    stopped = int(runs.saved(tmp_path / "student")["step"])
    assert 10 < stopped < 40
    asked, said = err.strip().splitlines()
    assert asked.startswith("SIGTERM: saving after this step")
    assert said == f"stopped: student: saved at step {stopped} of 40. The same command goes on from there."
    out, _ = finish(runs.spawn(tmp_path, *SLOWLY))
    assert f"student  resumed at step {stopped}" in out
    assert_same_end(tmp_path, uninterrupted)
    for stage in STAGES:
        assert runs.log(tmp_path / stage).eval == runs.log(uninterrupted / stage).eval
    trained = {line["step"]: line for line in runs.log(tmp_path / "student").train}
    for line in runs.log(uninterrupted / "student").train:  # a line is a mean since the last one: one of them differs
        if line["step"] <= stopped or line["step"] > stopped + 5:
            assert line == trained[line["step"]]


@pytest.mark.parametrize(("stage", "step"), [("teacher big", 7), ("student", 13), ("student", 20), ("control", 39)])
def test_a_run_stopped_after_any_step_ends_the_same(stage, step, reference, tmp_path, monkeypatch, capsys):
    folder = stage.replace("teacher ", "teachers/")
    turns = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "stop", lambda self: next(turns) == 40 * STAGES.index(folder) + step)
        assert runs.run(tmp_path) == 0
    said = capsys.readouterr()
    assert said.err == f"stopped: {stage}: saved at step {step} of 40. The same command goes on from there.\n"
    assert not (tmp_path / "results.json").exists()
    assert runs.run(tmp_path) == 0
    assert f"{stage}  resumed at step {step}" in capsys.readouterr().out
    assert_same_end(tmp_path, reference)
    if step % 10 == 0:
        assert runs.log(tmp_path / folder) == runs.log(reference / folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run that nobody disturbed, in this process."""
    workdir = tmp_path_factory.mktemp("reference")
    assert runs.run(workdir) == 0
    return workdir


class Moment(NamedTuple):
    """When a run is killed: once a file has appeared (a pattern, in the workdir), and after a delay in seconds."""

    file: str
    delay: float = 0.0


MOMENTS = (
    Moment("config.json", 0.3),  # initialising and compiling the teacher
    Moment("teachers/big/log.jsonl", 0.4),  # compiling its step, or the first steps
    Moment("teachers/big/checkpoints/steps/10.orbax-checkpoint-tmp"),  # in the middle of its first save
    Moment("teachers/big/checkpoints/steps/20", 0.0),  # committed, but not vouched for yet
    Moment("teachers/big/result.json"),  # between teacher and student
    Moment("student/checkpoints/manifests/10.json", 0.15),  # between two of its saves
    Moment("student/checkpoints/steps/30.orbax-checkpoint-tmp", 0.01),  # in the middle of a later save
    Moment("student/checkpoints/manifests/40.json"),  # trained, but not measured
    Moment("control/checkpoints/steps/20*", 0.03),
    Moment("control/result.json"),  # all trained, nothing written
)


def standing(workdir: Path) -> str:
    """How far a killed run has come: the steps of each stage's checkpoints, vouched for or not, and of its log."""
    found = []
    for stage in filter(lambda stage: (workdir / stage).exists(), STAGES):
        folder, log = workdir / stage / "checkpoints", runs.log(workdir / stage)
        steps = [
            f"{p.name}{'' if (folder / 'manifests' / f'{p.name}.json').is_file() else '?'}"
            for p in folder.glob("steps/*")
        ]
        found.append(
            f"{stage}: checkpoints {sorted(steps)}, logged {max((line['step'] for line in log.train), default=0)}"
        )
    return "; ".join(found) or "nothing yet"


@pytest.mark.slow
def test_a_run_killed_at_ten_moments_ends_the_same(uninterrupted, tmp_path):
    for moment in MOMENTS:
        process = runs.spawn(tmp_path, *SLOWLY)
        meet(process, lambda moment=moment: any(tmp_path.glob(moment.file)))
        time.sleep(moment.delay)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"the run ended before {moment}"
        sys.stdout.write(f"killed after {moment.file}: {standing(tmp_path)}\n")  # shown by `pytest -rP`
    finish(runs.spawn(tmp_path, *SLOWLY))
    assert_same_end(tmp_path, uninterrupted)
    for stage in STAGES:
        assert runs.log(tmp_path / stage) == runs.log(uninterrupted / stage)
    rows = [runs.results(workdir)["rows"] for workdir in (tmp_path, uninterrupted)]
    for row in (*rows[0], *rows[1]):
        del row["latency_ms"]
    assert rows[0] == rows[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def together(workdir: Path, *words: str) -> list[subprocess.Popen]:
    """Starts two processes with two devices each, which find each other."""
    place = f"--config.distributed.coordinator=localhost:{free_port()}", "--config.distributed.processes=2"
    return [
        runs.spawn(workdir, *words, *place, f"--config.distributed.process={process}", devices=2) for process in (0, 1)
    ]


def said(out: str) -> str:
    """What a process printed, without the lines of the library that connects it to the others."""
    return "".join(line for line in out.splitlines(keepends=True) if not line.startswith("[Gloo]"))


def assert_near_end(workdir: Path, reference: Path) -> None:
    """As `assert_same_end`, up to the order in which float32 sums are taken."""
    for stage in STAGES:
        mine, its = runs.saved(workdir / stage), runs.saved(reference / stage)
        assert mine.keys() == its.keys()
        for name in its:
            np.testing.assert_allclose(mine[name], its[name], rtol=1e-6, atol=1e-6, err_msg=f"{stage} {name}")


MESHES = {"data and fsdp": ("--config.mesh.data=2", "--config.mesh.fsdp=2"), "tensor": ("--config.mesh.tensor=4",)}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_end_like_one(mesh, tmp_path):
    words = *MESHES[mesh], "--config.rate=0.01", "--config.optimizer=sgd()"
    finish(runs.spawn(tmp_path / "one", *words, devices=4))
    first, second = map(finish, together(tmp_path / "two", *words))
    assert "The student reaches" in first[0]
    assert said(second[0]) == ""
    assert_near_end(tmp_path / "two", tmp_path / "one")
    for stage in STAGES:
        assert [line["step"] for line in runs.log(tmp_path / "two" / stage).eval] == [10, 20, 30, 40]
    assert [row["name"] for row in runs.results(tmp_path / "two")["rows"]] == ["teacher big", "student", "control"]


@pytest.mark.slow
def test_two_processes_take_a_teacher_from_a_checkpoint_of_one(reference, tmp_path):
    words = *MESHES["data and fsdp"], "--config.steps=10", f"--config.teachers.big.checkpoint={reference / STAGES[0]}"
    for _, err in map(finish, together(tmp_path, *words)):
        assert "Error" not in err
    teacher, before = (runs.results(workdir)["rows"][0] for workdir in (tmp_path, reference))
    for metric in ("accuracy", "nll", "ece", "parameters"):
        assert teacher[metric] == pytest.approx(before[metric], rel=1e-5)


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(tmp_path):
    words = *MESHES["data and fsdp"], *SLOWLY, "--config.optimizer=sgd()"
    finish(runs.spawn(tmp_path / "one", *words, devices=4))
    workdir = tmp_path / "two"
    processes = together(workdir, *words)
    meet(processes[0], (workdir / "student/checkpoints/manifests/10.json").is_file)
    processes[1].send_signal(signal.SIGTERM)  # one is told, all stop
    for _, err in map(finish, processes):
        assert "stopped: student: saved at step" in err
    assert 10 < runs.saved(workdir / "student")["step"] < 40
    first, second = map(finish, together(workdir, *words))
    assert "teacher big  was finished before" in first[0]
    assert "student  resumed at step" in first[0]
    assert said(second[0]) == ""
    assert_near_end(workdir, tmp_path / "one")
