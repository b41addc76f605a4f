"""Tests of studies: their arms, stopped and resumed runs, results that are taken over, and the comparison of arms."""

import json
import os
import re
import signal
import threading
import time

import pytest
import runs
from tiny_study import QUIET, ROW, TERMS, study

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, Stopped
from jaxdistill.evaluation.comparison import interval, paired
from jaxdistill.evaluation.report import study as plot
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run import output_checks, workdir
from jaxdistill.run import study as studies
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ
from jaxdistill.run.study import expand
from jaxdistill.run.study import runs as runs_of


def test_axes_multiply_and_every_arm_has_its_own_values():
    arms = expand(study())
    assert list(arms) == [f"{term} | {labels}" for term in TERMS for labels in ("few", "many")] + ["labels alone"]
    assert arms[f"{TERMS[1]} | many"].objective.kd.term == TERMS[1]
    assert [arms[f"{TERMS[0]} | {labels}"].batch_size for labels in ("few", "many")] == [32, 16]
    assert not arms["labels alone"].teachers
    every = runs_of(study(), runs.Path("w"), 2, {"big": "w/taught"})
    assert [run.config.seed for run in every] == [run.seed for run in every] == [0] * 5 + [1] * 5, (
        "a study that is cut is a smaller study"
    )
    assert len({run.folder for run in every}) == 10
    assert {run.config.teachers.big.checkpoint for run in every if run.config.teachers} == {"w/taught"}
    (read, *_) = runs_of(study(cached=True), runs.Path("w"), 1, {"big": "w/taught"})
    assert read.config.teachers.big.cache == "outputs(folder='w/said/big')", "asked once"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"baseline": "labels"}, r"baseline: there is no arm 'labels'. Did you mean 'labels alone'\?"),
        ({"axes": {"fusion": {"a b": {}, "a, b": {}}}}, "'a b', 'a, b' would share a folder"),
        ({"axes": {"fusionn": ("average()",)}}, "unknown key 'fusionn'. Did you mean 'fusion'"),
        ({"axes": {"fusion": ("averag()",)}, "baseline": "averag()"}, "fusion: unknown fusion 'averag'"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(wrong, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        sweep.run_study(study(**wrong), tmp_path / "w", 1, QUIET)
    assert not (tmp_path / "w").exists()


def test_a_teacher_may_have_learned_from_one_before_it(tmp_path, monkeypatch):
    ran = {}
    monkeypatch.setattr(sweep, "run_or_resume", lambda config, folder, source: ran.setdefault(folder, config) and [ROW])
    above = differ(study().base, teachers={"above": {"model": "mlp(widths=(16,), classes=4)"}})
    chain = study(base=differ(above, teachers={}), teachers={"above": study().base, "below": above})
    found = sweep.train_teachers(chain, tmp_path, QUIET)
    assert found == {name: str(tmp_path / "teachers" / name) for name in ("above", "below")}
    assert ran[tmp_path / "teachers" / "below"].teachers.above.checkpoint == found["above"]


def test_arms_may_learn_from_teachers_that_the_study_has_yet_to_train():
    without = differ(study().base, teachers={"big": {"model": "mlp(widths=(16,), classes=4)", "steps": 0}})
    learned = study(base=without, teachers={"big": differ(study().base, teachers={}, objective={"cross_entropy": {}})})
    studies.check_arms(learned, data=True)
    with pytest.raises(ConfigError, match=r"teachers\.big: has neither a checkpoint nor steps"):
        studies.check_arms(learned._replace(teachers={}), data=True)


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    """Stop a study of two arms and two seeds in its third run, resume it, repeat it; return what each time has run."""
    workdir, made, distill = tmp_path_factory.mktemp("study"), [], studies.distill
    small = study(axes={"objective.kd.term": TERMS}, baseline=TERMS[0], further={}, measures=MEASURES)

    def counted(config, folder, console, source):
        made.append(folder.relative_to(workdir).as_posix())
        if len(made) == 4:
            raise Stopped("saved")
        return distill(config, folder, console, source)

    with pytest.MonkeyPatch.context() as patch, runs.compilation_cache(workdir / "programs"):
        patch.setattr(studies, "distill", counted)
        with pytest.raises(Stopped):
            sweep.run_study(small, workdir, 2, QUIET)
        assert [len(line.values) for line in plot.write(workdir)] == [1, 1], "a study that was cut is a smaller one"
        lines = sweep.run_study(small, workdir, 2, QUIET)
        first, second = made[:4], made[4:]
        made.clear()
        sweep.run_study(small, workdir, 2, QUIET)
    return workdir, lines, first, second, made


MEASURES = (ACCURACY, Measure("grad_norm", "norm", digits=3), Measure("nothing/0", "of none"))


@pytest.mark.slow
def test_a_study_that_was_cut_goes_on_and_runs_nothing_twice(conducted):
    _, lines, first, second, third = conducted
    one, four = (f"kd-temperature={t}.0" for t in (1, 4))
    assert first == ["taught", f"{one}/0", f"{four}/0", f"{one}/1"]
    assert second == [f"{one}/1", f"{four}/1"]
    assert third == []
    assert [len(line.values) for line in lines] == [2, 2]


@pytest.mark.slow
def test_the_table_says_what_the_runs_say(conducted):
    workdir, lines, *_ = conducted
    for line, t in zip(lines, (1, 4), strict=True):
        rows = [runs.results(workdir / f"kd-temperature={t}.0" / str(seed))["rows"] for seed in (0, 1)]
        accuracy = [100 * row["accuracy"] for found in rows for row in found if row["name"] == "student"]
        assert list(line.values.values()) == pytest.approx(accuracy)
        norms = [
            runs.log(workdir / f"kd-temperature={t}.0" / str(s) / "student").train[-1]["grad_norm"] for s in (0, 1)
        ]
        assert line.others == (plot.spread(norms, 3), "")
    assert (workdir / "table.md").read_text() == plot.markdown(plot.read(workdir), lines) + "\n"


@pytest.mark.parametrize(("change", "taken"), [({}, True), ({"steps": 5}, False), ({"batch_size": 16}, False)])
def test_results_are_taken_over_from_the_same_config_alone(change, taken, tmp_path):
    config = differ(runs.load(), steps=4)
    assert studies.finished_results(config, tmp_path) is None, "nothing was run"
    content = {"config": config.to_dict(), "rows": [], "seconds": {}, "provenance": {}}
    seal.write(tmp_path / "results.json", {**content, "log": {"student": {"loss": 1.0}}})
    assert bool(studies.finished_results(differ(config, **change), tmp_path)) == taken
    damaged = (tmp_path / "results.json").read_text().replace("1.0", "2.0", 1)
    (tmp_path / "results.json").write_text(damaged)
    assert studies.finished_results(config, tmp_path) is None, "damaged results are made again"


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_study_in_the_folder_of_a_run_is_refused(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"--workdir: .* holds a run. Choose another folder"):
        output_checks.check_study(tmp_path)


def test_results_of_a_run_that_was_resumed_after_its_last_step_are_taken_over(tmp_path):
    config = differ(runs.load(), steps=4)
    content = {"config": config.to_dict(), "rows": [], "seconds": {}, "provenance": {}, "log": {"student": {}}}
    seal.write(tmp_path / "results.json", content)
    results = studies.finished_results(config, tmp_path)
    assert results is not None and results["log"] == {}


@pytest.mark.slow
def test_a_steps_more_is_another_run(conducted):
    workdir, *_ = conducted
    (run, *_) = runs_of(study(), workdir, 1, {})
    done = json.loads((workdir / "kd-temperature=1.0" / "0" / "config.json").read_text())["config"]
    config = differ(run.config, **done)
    assert studies.finished_results(config, workdir / "kd-temperature=1.0" / "0")
    assert not studies.finished_results(differ(config, steps=5), workdir / "kd-temperature=1.0" / "0")
    assert not studies.finished_results(differ(config, batch_size=16), workdir / "kd-temperature=1.0" / "0")


@pytest.mark.slow
def test_the_page_is_one_file_that_escapes_what_it_is_told(conducted):
    workdir, *_ = conducted
    page = (workdir / "study.html").read_text()
    assert "Is &lt;b&gt; bold?" in page and "<b> bold" not in page
    assert re.search(
        r'<svg role="img" aria-label="accuracy \(%\), mean and 95 % interval: kd\(temperature=1.0\) ', page
    )
    assert not re.search(r"<(script|link|img|iframe)", page)
    assert (workdir / "figure.svg").read_text() in page
    assert (workdir / "figure.png").read_bytes()[1:4] == b"PNG"


def test_a_signal_between_two_runs_leaves_what_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_all", lambda left, console: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(sweep, "train_teachers", lambda *_: {"big": str(tmp_path)})
    assert sweep.guarded(lambda: sweep.run_study(study(), tmp_path, 1, QUIET) and 0) == 0
    assert capsys.readouterr().err == ("stopped: SIGTERM received between two runs. The same command resumes it.\n")
    assert plot.read(tmp_path)["runs"] == {arm: {} for arm in expand(study())}


def test_a_folder_holds_one_study(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_all", lambda left, console: [])
    monkeypatch.setattr(sweep, "train_teachers", lambda *_: {"big": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"WORKDIR: .*study.json' does not exist. Use the --workdir of a study"):
        plot.write(tmp_path)
    sweep.run_study(study(), tmp_path, 1, QUIET)
    sweep.run_study(study(further={**study().further, "more": {}}), tmp_path, 1, QUIET)
    with pytest.raises(ConfigError, match=r"--workdir: .* holds a study with the arm 'more', which this study lacks"):
        sweep.run_study(study(), tmp_path, 1, QUIET)


def test_a_page_of_a_study_is_one_line_if_it_fails(tmp_path, capsys):
    assert plot.main([str(tmp_path)]) == 2 and "study.json' does not exist" in capsys.readouterr().err
    (tmp_path / "study.json").write_text("{")
    assert plot.main([str(tmp_path)]) == 4 and capsys.readouterr().err.count("\n") == 1


def test_two_sweeps_refuse_each_other(tmp_path):
    with workdir.locked(tmp_path):
        with pytest.raises(ConfigError, match=r"--workdir: .* is in use by process \d+ on .*\. Wait until"):
            sweep.run_study(study(), tmp_path, 1, QUIET)
        with pytest.raises(ConfigError, match="in use"), workdir.locked(tmp_path):
            pass
    with workdir.locked(tmp_path):  # the lock is free again
        pass


def test_a_lock_may_be_waited_for(tmp_path, capsys):
    order = []

    def second():
        with workdir.locked(tmp_path, wait=True):
            order.append("second")

    with workdir.locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        said, end = "", time.monotonic() + 30
        while "waiting for it" not in said and time.monotonic() < end:
            time.sleep(0.01)
            said += capsys.readouterr().err
        assert "waiting for it" in said
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def told(**arms: list[float]) -> dict:
    """Return the content of a study.json with these accuracies; the first arm is the baseline, nan a missing run."""
    found = {arm: {str(s): {"accuracy": x} for s, x in enumerate(values) if x == x} for arm, values in arms.items()}
    return {"baseline": next(iter(arms)), "measures": [ACCURACY], "runs": found}


def test_mean_interval_and_paired_test_by_hand():
    """Check values by hand: Student's t is 4.30265 at 2 degrees of freedom, and the deviation of 1, 2, 3 is 1.

    The interval of the gains 1, 2, 3 is thus 2 +- 4.30265 / sqrt 3.
    """
    lines = plot.summary(told(base=[10.0, 20.0, 30.0], more=[11.0, 22.0, 33.0], cut=[12.0, float("nan"), float("nan")]))
    base, more, cut = lines
    assert base.gain is None and (base.mean, more.mean) == (20.0, 22.0)
    half = 4.302653 / 3**0.5
    assert (more.gain.mean, more.gain.low, more.gain.high) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-5)
    assert more.gain.p == pytest.approx(0.0741799, abs=1e-6), "t = 2 sqrt 3"
    assert (base.low, base.high) == pytest.approx((20 - 10 * half, 20 + 10 * half), abs=1e-4)
    assert interval([10.0, 20.0, 30.0]) == (base.low, base.high)
    assert cut.gain.mean == 2.0 and cut.gain.differences == [2.0], "of the seeds that both have"
    rows = plot.cells(told(base=[1.0]), lines)
    assert rows[2][1:7] == ["22.00", "-5.33 to 49.33", "+2.00", "-0.48 to 4.48", "0.074", "3"]
    assert rows[3][1:7] == ["12.00", "", "+2.00", "", "", "1"]


def test_a_pair_of_equal_arms_is_no_certainty():
    assert paired([1.0, 2.0], [1.0, 2.0])[:3] == (0.0, 0.0, 0.0)
    assert plot.cells(told(a=[1.0, 2.0]), plot.summary(told(a=[1.0, 2.0], b=[1.0, 2.0])))[2][5] == ""
