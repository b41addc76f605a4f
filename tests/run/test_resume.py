"""Tests of resumed runs: a run that was stopped or killed ends with the same bits as an uninterrupted one."""

import itertools
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import runs
from examples import slow

from jaxdistill.core.manifest import manifests
from jaxdistill.run.preemption import Preemption


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.compilation_cache(tmp_path_factory.getbasetemp() / "programs"):
        yield


@pytest.fixture(autouse=True)
def ended():
    yield
    runs.end_processes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Finish a run without interruption in a process of its own, and return its workdir."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    runs.finish(runs.spawn(workdir, *runs.SLOWLY))
    return workdir


def test_a_run_stopped_by_sigterm_exits_0_and_ends_the_same(uninterrupted, tmp_path):
    process = runs.spawn(tmp_path, *runs.SLOWLY)
    runs.meet(process, (tmp_path / "student/checkpoints/manifests/10.json").is_file)
    process.send_signal(signal.SIGTERM)
    _, err = runs.finish(process)
    stopped = int(runs.saved(tmp_path / "student")["step"])
    assert 10 < stopped < 40
    asked, said = err.strip().splitlines()
    assert asked.startswith("SIGTERM: saving after this step")
    assert said == f"stopped: student: saved at step {stopped} of 40. The same command resumes it."
    out, _ = runs.finish(runs.spawn(tmp_path, *runs.SLOWLY))
    assert f"student  resumed at step {stopped}" in out
    runs.assert_same_end(tmp_path, uninterrupted)
    for stage in runs.STAGES:
        assert runs.log(tmp_path / stage).eval == runs.log(uninterrupted / stage).eval
    trained = {line["step"]: line for line in runs.log(tmp_path / "student").train}
    # A line is a mean over the steps since the previous line, so that the first line after the stop differs.
    for line in runs.log(uninterrupted / "student").train:
        if line["step"] <= stopped or line["step"] > stopped + 5:
            assert line == trained[line["step"]]


@pytest.mark.parametrize(
    ("stage", "step"), [slow("teacher big", 7), ("student", 13), slow("student", 20), slow("control", 39)]
)
def test_a_run_stopped_after_any_step_ends_the_same(stage, step, reference, tmp_path, monkeypatch, capsys):
    folder = stage.replace("teacher ", "teachers/")
    turns = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "should_stop", lambda self: next(turns) == 40 * runs.STAGES.index(folder) + step)
        assert runs.run(tmp_path) == 0
    said = capsys.readouterr()
    assert said.err == f"stopped: {stage}: saved at step {step} of 40. The same command resumes it.\n"
    assert not (tmp_path / "results.json").exists()
    measured = manifests(tmp_path / folder / "checkpoints")[step]["metrics"]
    assert bool(measured) is (step % 10 == 0)  # the metrics of an earlier evaluation do not belong to this step
    assert runs.run(tmp_path) == 0
    assert f"{stage}  resumed at step {step}" in capsys.readouterr().out
    runs.assert_same_end(tmp_path, reference)
    if step % 10 == 0:
        assert runs.log(tmp_path / folder) == runs.log(reference / folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Finish a run without interruption in this process, and return its workdir."""
    workdir = tmp_path_factory.mktemp("reference")
    assert runs.run(workdir) == 0
    return workdir


class Moment(NamedTuple):
    """The moment at which a run is killed.

    file: pattern of a file in the workdir whose appearance is waited for
    delay: seconds to wait after that
    """

    file: str
    delay: float = 0.0


MOMENTS = (
    Moment("config.json", 0.3),  # initialising and compiling the teacher
    Moment("teachers/big/log.jsonl", 0.4),  # compiling its step, or the first steps
    Moment("teachers/big/checkpoints/steps/10.orbax-checkpoint-tmp"),  # in the middle of its first save
    Moment("teachers/big/checkpoints/steps/20", 0.0),  # the checkpoint is complete, but its manifest may be missing
    Moment("teachers/big/result.json"),  # between teacher and student
    Moment("student/checkpoints/manifests/10.json", 0.15),  # between two of its saves
    Moment("student/checkpoints/steps/30.orbax-checkpoint-tmp", 0.01),  # in the middle of a later save
    Moment("student/checkpoints/manifests/40.json"),  # trained, but not measured
    Moment("control/checkpoints/steps/20*", 0.03),
    Moment("control/result.json"),  # all trained, nothing written
)


def standing(workdir: Path) -> str:
    """Describe how far a killed run has come: by stage, its checkpoints ('?': no manifest) and its last logged step."""
    found = []
    for stage in filter(lambda stage: (workdir / stage / "log.jsonl").exists(), runs.STAGES):
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
        process = runs.spawn(tmp_path, *runs.SLOWLY)
        runs.meet(process, lambda moment=moment: any(tmp_path.glob(moment.file)))
        time.sleep(moment.delay)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"the run ended before {moment}"
        sys.stdout.write(f"killed after {moment.file}: {standing(tmp_path)}\n")  # shown by `pytest -rP`
    runs.finish(runs.spawn(tmp_path, *runs.SLOWLY))
    runs.assert_same_end(tmp_path, uninterrupted)
    for stage in runs.STAGES:
        assert runs.log(tmp_path / stage) == runs.log(uninterrupted / stage)
    rows = [runs.results(workdir)["rows"] for workdir in (tmp_path, uninterrupted)]
    for row in (*rows[0], *rows[1]):
        del row["latency_ms"], row["latency_range"]
    assert rows[0] == rows[1]
