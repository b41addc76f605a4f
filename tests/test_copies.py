"""Seeds as one program leave what each would leave alone, and a stopped group goes on to the bit."""

import pytest
import runs
from examples import assert_close, slow
from test_sweep import QUIET, TERMS, study

from experiments import copies, once, sweep
from experiments.study import runs as runs_of
from jaxdistill.config import differ
from jaxdistill.interrupts import Interrupts, Stopped


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two seeds of an arm, beside a teacher that is there or from labels alone, in a folder of this name."""
    folder = tmp_path_factory.mktemp("copies")
    alone = {"labels alone": {"teachers": {}, "objective": {"cross_entropy": {}}}}
    small = study(axes={"objective.kd.term": TERMS[:1]}, baseline=TERMS[0], further=alone)
    small = small._replace(base=differ(small.base, logging={"every": 2}, evaluate={"every": 2}))

    def made(name, arm="labels alone"):
        checkpoints = {} if arm in alone else sweep.teach(small, folder / "shared", QUIET)
        return [run for run in runs_of(small, folder / name, 2, checkpoints) if run.arm == arm]

    with runs.compilation_cache(folder / "programs"):
        yield made


def left(run):
    """What a run has left: what it scored, its log without times, its last checkpoint."""
    results = once.finished(run.config, run.folder)
    assert runs.results(run.folder)["rows"] and (run.folder / "student" / "result.json").is_file()
    row = {k: v for k, v in results["rows"][-1].items() if isinstance(v, float) and k != "latency_ms"}
    log = runs.log(run.folder / "student")
    timeless = [{k: v for k, v in line.items() if k not in ("time", "steps_per_second")} for line in log.train]
    return row, timeless, runs.saved(run.folder / "student")


@pytest.mark.parametrize("arm", ["labels alone", slow(TERMS[0])])
def test_seeds_together_leave_what_each_leaves_alone(world, arm):
    together, alone = world(f"{arm} together", arm), world(f"{arm} alone", arm)
    sweep.work(together, QUIET, as_one=True)
    once.ran(alone[1].config, alone[1].folder)
    (row, log, state), (own_row, own_log, own_state) = left(together[1]), left(alone[1])
    assert row == pytest.approx(own_row, rel=1e-4)
    assert [line["step"] for line in log] == [line["step"] for line in own_log]
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in own_log], rel=1e-5)
    assert_close(state, own_state, atol=1e-5)
    assert runs.differences(state, left(together[0])[2])


@pytest.mark.slow
def test_a_group_that_was_stopped_goes_on_to_the_bit(world, monkeypatch):
    whole, cut = world("whole"), world("cut")
    copies.learn(whole, QUIET)
    turns = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "stop", lambda self: next(turns))
        with pytest.raises(Stopped, match="2 students: saved at step 3 of 4"):
            copies.learn(cut, QUIET)
    copies.learn(cut, QUIET)
    for run, other in zip(whole, cut, strict=True):
        assert not runs.differences(left(run)[2], left(other)[2])


@pytest.mark.slow
def test_a_signal_in_the_last_step_stops_the_study(world, monkeypatch):
    group = world("late")
    monkeypatch.setattr(Interrupts, "stop", lambda self: setattr(self, "asked", "SIGTERM"))
    with pytest.raises(Stopped, match="2 students are trained; only their tables and pages are missing"):
        copies.learn(group, QUIET)
