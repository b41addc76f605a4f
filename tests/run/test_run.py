"""Tests of a whole run: the files that it writes, what it repeats to the bit, and how it fails."""

import contextlib
import io
import itertools
import json
import re
import shutil

import jax
import numpy as np
import pytest
import runs
from examples import slow
from own_parts import FUSION, LOSS, MODEL
from runs import rows, without_latency

from jaxdistill.core import registry
from jaxdistill.run import preemption, train, workdir

STAGES = ("teachers/big", "student", "control")


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.compilation_cache(tmp_path_factory.getbasetemp() / "programs"):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finish a run, write its output and the names of its compiled programs into its workdir, and return it."""
    workdir = tmp_path_factory.mktemp("finished")
    before, printed = len(runs.compilations), io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        assert runs.run(workdir, "--config.logging.tensorboard=True") == 0
    (workdir / "printed.txt").write_text(printed.getvalue())
    (workdir / "compiled.json").write_text(json.dumps(runs.compilations[before:]))
    return workdir


@pytest.fixture(scope="module")
def taught(finished):
    """Return command-line arguments that take the teacher from the finished run, and leave out the control."""
    return f"--config.teachers.big.checkpoint={finished / 'teachers/big'}", "--config.control=False"


def test_the_table_has_teacher_student_and_control(finished):
    found = rows(finished)
    assert list(found) == ["teacher big", "student", "control"]
    for row in found.values():
        assert {"accuracy", "nll", "ece", "parameters", "bytes", "flops", "latency_ms"} <= row.keys()
        assert 0 < row["accuracy"] < 1
        assert row["flops"] > 0
        assert row["latency_ms"] > 0
    assert found["teacher big"]["parameters"] == (64 * 16 + 16) + (16 * 16 + 16) + (16 * 4 + 4)
    assert found["student"]["parameters"] == found["control"]["parameters"] == (64 * 8 + 8) + (8 * 8 + 8) + (8 * 4 + 4)
    assert found["student"]["bytes"] == 4 * found["student"]["parameters"]


def test_student_and_control_are_measured_beside_the_teacher(finished):
    found = rows(finished)
    for name in ("student", "control"):
        assert {"agreement", "kl", "agreement_on_errors", "rank_correlation"} <= found[name].keys()
        assert len(found[name]["cka"]) == 1
    assert "agreement" not in found["teacher big"]
    assert found["student"]["kl"] < found["control"]["kl"]  # distillation brings the student closer to the teacher


def test_results_say_where_they_come_from(finished):
    results = runs.results(finished)
    assert {"git", "versions", "device", "seed", "date", "command"} <= results["provenance"].keys()
    assert results["provenance"]["versions"]["jax"] == jax.__version__
    assert results["config"]["student"]["model"] == "mlp(widths=(8, 8), classes=4, dropout=0.1)"
    json.loads((finished / "results.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    saved = json.loads((finished / "config.json").read_text())
    assert saved["config"] == results["config"]
    assert saved["source"] == runs.TINY.name
    assert (finished / saved["source"]).read_bytes() == runs.TINY.read_bytes()


def test_the_page_opens_from_disk(finished):
    page = (finished / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert all(name in page for name in ("teacher big", "student", "control", "<svg"))
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(["']?(https?:)?//|@import""", page)


def test_the_terminal_shows_progress_and_the_table(finished):
    printed = (finished / "printed.txt").read_text()
    assert "teacher big  step 10/40: accuracy " in printed
    for name, row in rows(finished).items():
        assert any(name in line and f"{100 * row['accuracy']:.2f}" in line for line in printed.splitlines())
    assert "The student reaches " in printed
    assert "report.html" in printed


@pytest.mark.parametrize("stage", STAGES)
def test_the_log_has_every_interval_and_evaluation(stage, finished):
    log = runs.log(finished / stage)
    assert [line["step"] for line in log.eval] == [10, 20, 30, 40]
    assert [line["step"] for line in log.train] == [4, 9, 10, 14, 19, 20, 24, 29, 30, 34, 39, 40]
    last = log.train[-1]
    assert last["loss"] == pytest.approx(
        sum(
            last[f"weights/{name}"] * last[f"terms/{name}"]
            for name in ("kd", "cross_entropy")
            if f"terms/{name}" in last
        ),
        rel=1e-5,
    )
    assert list((finished / stage / "tensorboard").glob("events.out.tfevents.*"))


def test_schedules_are_in_the_log(finished):
    log = runs.log(finished / "student")
    weights = {line["step"]: line["weights/kd"] for line in log.train}
    assert weights[10] == pytest.approx(0.9 - 0.4 * 9 / 40)
    assert weights[40] == pytest.approx(0.9 - 0.4 * 39 / 40)
    assert {line["temperature/kd"] for line in log.train} == {4.0}
    assert runs.log(finished / "control").train[-1]["weights/cross_entropy"] == 1.0


def test_every_function_is_compiled_once(finished):
    compiled = json.loads((finished / "compiled.json").read_text())
    for stage in STAGES:
        assert json.loads((finished / stage / "result.json").read_text())["compiled"] == {"update": 1, "evaluate": 1}
    for function in ("jit(init)", "jit(update)", "jit(evaluate)"):
        assert compiled.count(function) == len(STAGES), compiled


def test_a_run_repeats_from_its_record_if_its_source_is_trusted(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(registry.datasets.factories, "blobs")  # so that only the copied file can register it
    assert runs.run(tmp_path / "never", source=finished / "config.json") == 2
    said = capsys.readouterr().err
    assert "names data set blobs, which tiny.py registers; loading a record runs no code. Read " in said
    assert runs.run(tmp_path, "--trust-source", source=finished / "config.json") == 0
    for stage in STAGES:
        assert runs.differences(runs.saved(finished / stage), runs.saved(tmp_path / stage)) == []
    assert list(map(without_latency, runs.results(tmp_path)["rows"])) == list(
        map(without_latency, runs.results(finished)["rows"])
    )


def test_a_config_whose_source_was_changed_is_refused(finished, tmp_path, capsys):
    for name in ("config.json", runs.TINY.name):
        shutil.copy(finished / name, tmp_path)
    with (tmp_path / runs.TINY.name).open("a") as file:
        file.write("# another day\n")
    assert runs.run(tmp_path / "again", "--trust-source", source=tmp_path / "config.json") == 2
    assert "was changed since" in capsys.readouterr().err


def test_a_teacher_from_a_checkpoint_gives_the_same_row_and_student(finished, taught, tmp_path):
    assert runs.run(tmp_path, *taught) == 0
    assert without_latency(rows(tmp_path)["teacher big"]) == without_latency(rows(finished)["teacher big"])
    assert runs.differences(runs.saved(finished / "student"), runs.saved(tmp_path / "student")) == []
    assert not (tmp_path / "teachers").exists()


def test_the_student_of_a_run_can_be_the_teacher_of_another(finished, tmp_path):
    model = "--config.teachers.big.model=mlp(widths=(8, 8), classes=4)"
    words = f"--config.teachers.big.checkpoint={finished}@best", "--config.control=False", "--config.steps=1"
    assert runs.run(tmp_path, model, *words) == 0
    best = max(line["accuracy"] for line in runs.log(finished / "student").eval)
    assert rows(tmp_path)["teacher big"]["accuracy"] == best


def test_a_finished_run_is_taken_over_as_it_is(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = len(runs.compilations)
    assert runs.run(workdir, "--config.logging.every=3") == 0
    assert runs.compilations[before:] == []
    assert rows(workdir) == rows(finished)


@pytest.mark.sampled("checkpoints/steps/40")
@pytest.mark.parametrize("damaged", ["checkpoints/steps/40", "checkpoints/manifests/40.json", "result.json"])
def test_a_finished_run_of_which_something_is_damaged_is_mended(damaged, finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    file = workdir / "teachers/big" / damaged
    runs.damage(*(file, "flipped bits") if file.is_dir() else (file.parent, "truncated", file))
    assert runs.run(workdir) == 0
    printed = "".join(capsys.readouterr().out.split())
    if "checkpoints" in damaged:
        assert "checkpointofstep40issetaside:" in printed
    assert f"teacherbigresumedatstep{40 if damaged == 'result.json' else 30}" in printed
    assert "studentwasalreadyfinished" in printed
    assert runs.differences(runs.saved(finished / "teachers/big"), runs.saved(workdir / "teachers/big")) == []


def test_student_and_control_begin_alike_and_see_the_same_rows(finished, tmp_path, monkeypatch):
    seen: list[list[list[int]]] = []
    original = train.train_stream

    class Watched:
        def __init__(self, *args, **kwargs):
            self.stream, rows = original(*args, **kwargs), []
            self.rows = rows
            seen.append(rows)

        def __next__(self):
            batch = next(self.stream)
            self.rows.append(batch["index"].tolist())
            return batch

        def __getattr__(self, name):
            return getattr(self.stream, name)

    monkeypatch.setattr(train, "train_stream", Watched)
    teacher = f"--config.teachers.big.checkpoint={finished / 'teachers/big'}"
    assert runs.run(tmp_path, teacher, "--config.rate=0", "--config.steps=10") == 0
    student, control = seen
    assert len(student) == 10
    assert student == control
    ends = [runs.saved(tmp_path / stage) for stage in ("student", "control")]
    beginning = [{name: x for name, x in end.items() if name.startswith(("params/student", "key"))} for end in ends]
    assert len(beginning[0]) == 7
    assert runs.differences(*beginning) == []


def test_a_run_that_blows_up_stops_with_exit_code_3(taught, tmp_path, capsys):
    assert runs.run(tmp_path, *taught, "--config.rate=1e30", "--config.clip_norm=0.0") == 3
    said = capsys.readouterr().err
    assert said.startswith("error: student: ")
    assert said.count("\n") == 1
    assert "Checkpoints before that step are kept" in said


def breaking(at: int) -> tuple[str, str]:
    return "--config.objective.breaks.weight=0.1", f"--config.objective.breaks.term=breaks(at={at})"


@pytest.mark.sampled("13")
@pytest.mark.parametrize("at", [13, 19])
def test_a_loss_that_turns_nan_is_named_with_its_step_and_the_last_checkpoint_is_good(at, taught, tmp_path, capsys):
    words = breaking(at)
    assert runs.run(tmp_path, *taught, *words) == 3
    assert capsys.readouterr().err.startswith(
        f"error: student: breaks is nan at step {at + 1}. Checkpoints before that step are kept"
    )
    assert at - 5 <= max(line["step"] for line in runs.log(tmp_path / "student").train) <= at  # the interval is 5
    left = runs.saved(tmp_path / "student")
    assert left["step"] == 10
    assert all(np.isfinite(x).all() for x in left.values() if x.dtype.kind == "f")
    # The repeated run loads this checkpoint, and fails in the same way.
    assert runs.run(tmp_path, *taught, *words) == 3
    assert "student  resumed at step 10" in capsys.readouterr().out


def test_every_step_between_two_looks_at_the_loss_is_looked_at(taught, tmp_path, capsys):
    assert runs.run(tmp_path, *taught, *breaking(11)) == 3  # losses are read at steps 10 and 15
    assert capsys.readouterr().err.startswith("error: student: breaks is nan at step 12.")


def test_a_run_that_is_asked_to_stop_saves_no_loss_that_is_nan(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(preemption.Preemption, "should_stop", lambda self: next(turns) == 13)
    turns = itertools.count(1)
    assert runs.run(tmp_path, *taught, *breaking(12)) == 3
    assert runs.saved(tmp_path / "student")["step"] == 10


def test_what_the_last_update_made_is_looked_at(taught, tmp_path):
    words = "--config.steps=1", "--config.rate=1e30", "--config.clip_norm=0.0"
    assert runs.run(tmp_path, *taught, *words) == 3
    assert not list((tmp_path / "student" / "checkpoints").glob("manifests/*"))


@pytest.mark.parametrize(
    "change", ["dtype=bfloat16", slow("accumulate=2"), slow("step=offline"), slow("clip_norm=0.1")]
)
def test_a_variant_runs(change, taught, tmp_path):
    assert runs.run(tmp_path, *taught, f"--config.{change}", "--config.steps=10") == 0
    assert np.isfinite(rows(tmp_path)["student"]["nll"])
    assert {x.dtype for name, x in runs.saved(tmp_path / "student").items() if name.startswith("params")} == {
        np.dtype("float32")
    }


def test_several_teachers_are_fused(taught, tmp_path):
    words = (
        "--config.teachers.small.model=mlp(widths=(4,), classes=4)",
        "--config.teachers.small.steps=10",
        "--config.teachers.small.rate=0.01",
        "--config.fusion=average(weights=(0.7, 0.3))",
        "--config.evaluate.layers=()",
        "--config.steps=10",
    )
    assert runs.run(tmp_path, *taught, *words) == 0
    found = rows(tmp_path)
    assert list(found) == ["teacher big", "teacher small", "student"]
    assert found["teacher small"]["parameters"] == 64 * 4 + 4 + 4 * 4 + 4


@pytest.mark.slow
def test_pmap_ends_where_jit_ends(taught, tmp_path):
    ends = []
    for backend in ("jit", "pmap"):
        words = (
            f"--config.mesh.backend={backend}",
            "--config.mesh.data=8",
            "--config.steps=10",
            "--config.optimizer=sgd()",
        )
        assert runs.run(tmp_path / backend, *taught, *words) == 0
        ends.append(runs.saved(tmp_path / backend / "student"))
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        if name.startswith(("params", "state")):
            np.testing.assert_allclose(ends[1][name], ends[0][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_steps_of_the_student_are_traced(taught, tmp_path):
    assert runs.run(tmp_path, *taught, "--config.steps=12", "--config.logging.trace=5") == 0
    assert list((tmp_path / "student" / "trace").rglob("*.xplane.pb"))


def test_a_loss_a_fusion_and_a_model_are_each_one_file_and_one_import(finished, tmp_path):
    package = shutil.copytree(
        runs.ROOT / "jaxdistill", tmp_path / "jaxdistill", ignore=shutil.ignore_patterns("__pycache__")
    )
    for room, text in {"losses/logits": LOSS, "fusion": FUSION, "models": MODEL}.items():
        (package / room / "mine.py").write_text(text)
        with (package / room / "__init__.py").open("a") as lines:
            lines.write(f"from jaxdistill.{room.replace('/', '.')} import mine\n")
    process = runs.spawn(
        tmp_path / "run",
        f"--config.teachers.big.checkpoint={finished / 'teachers/big'}",
        "--config.control=False",
        "--config.student.model=straight(classes=4)",
        "--config.objective.l1.weight=0.5",
        "--config.fusion=largest()",
        "--config.steps=5",
        package=tmp_path,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "student  step 5/5" in out
    assert rows(tmp_path / "run")["student"]["parameters"] == 64 * 4 + 4
    assert "terms/l1" in runs.log(tmp_path / "run" / "student").train[-1]


def test_two_runs_do_not_write_into_one_folder(taught, tmp_path, capsys):
    with workdir.locked(tmp_path):
        assert runs.run(tmp_path, *taught, "--config.steps=5") == 2
    said = r"error: --workdir: .* is in use by process \d+ on .*Wait until that process ends"
    assert re.match(said, capsys.readouterr().err)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    assert runs.run(tmp_path, *taught, "--config.steps=5") == 0
