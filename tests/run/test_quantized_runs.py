"""Tests of students that are trained for few bits: their controls, model folders, exports and checkpoints."""

import json
import shutil

import jax
import numpy as np
import pytest
from own_runs import QUIET, command, config_of, test_records

import jaxdistill
from jaxdistill import differ
from jaxdistill.core import seal
from jaxdistill.core.checkpoint import load_variables
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.evaluation.report.logs import read_logs
from jaxdistill.export.model_folder import ABOUT
from jaxdistill.run.distill import check_config

AWARE = "aware(weights=4, ranges='running', scales='learned', start=0.5)"


def quantized(family: str, home, spec: str = AWARE, **more):
    return differ(config_of(family, home), student={"quantized": spec}, **more)


@pytest.fixture(scope="module")
def run(home):
    """Return the folder of a finished run whose student is a perceptron trained for 4 bits."""
    jaxdistill.distill(quantized("mlp", home), home / "runs" / "aware", QUIET)
    return home / "runs" / "aware"


def answers(folder):
    return json.loads((folder / "result.json").read_text())["answers"]


def test_its_control_in_floats_stands_beside_it_also_rounded_afterwards(run):
    results = json.loads((run / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert names == ["teacher big", "student", "student in floats", "student rounded afterwards", "control"]
    rows = {row["name"]: row for row in results["rows"]}
    assert len({rows[name]["nll"] for name in names[1:4]}) == 3
    assert "trained in floats instead, it reaches" in results["summary"]
    assert "training, without rounding" in (run / "report.html").read_text()
    assert "student in floats" in read_logs(run)  # its curves are on the page
    assert not json.loads((run / "floats/hub" / ABOUT).read_text())["quantized"]


@pytest.mark.parametrize("family", ["mlp", pytest.param("bert", marks=pytest.mark.slow)])
def test_its_folder_holds_rounded_weights_and_predicts_as_the_run_did(family, home, run):
    folder = run
    if family != "mlp":
        folder = home / "runs" / f"aware-{family}"
        jaxdistill.distill(quantized(family, home), folder, QUIET)
    student = jaxdistill.load(folder)
    for name, x in student.float_variables.params.items():
        if x.ndim > 1:
            levels = [np.unique(np.abs(row)).size for row in np.asarray(x if "embedding" in name else x.T)]
            assert max(levels) <= 8, name
    found = student.predict(test_records(family, home), batch_size=16)
    np.testing.assert_array_equal(found.predicted, answers(folder / "student")["predicted"])
    probability = np.asarray(answers(folder / "student")["confidence"])
    np.testing.assert_allclose(found.confidence, probability, rtol=2e-6)


def test_its_files_are_compared_with_its_rounded_weights(run, capsys):
    words = ("--to", "onnx", "--model", "student", "--model", "floats")
    assert command("export", run, *words) == 0, capsys.readouterr().err
    for model in ("student", "floats"):
        about = seal.read(run / model / "exports/onnx/export.json", {"measured": dict})
        assert about["measured"]["largest"] < 1e-5 and about["problem"] == ""


def test_a_resumed_run_is_the_same_to_the_bit(run, home, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(again / "student/checkpoints/steps/4")
    (again / "student/result.json").unlink()
    resumed = jaxdistill.distill(quantized("mlp", home), again, QUIET).variables["student"]
    assert resumed.state["quantize/calls"] == 4 and "layers/0/kernel/log_scale" in resumed.params
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), resumed)
    first = load_variables(run / "student/checkpoints", "last", shapes)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(resumed))
    assert answers(again / "student") == answers(run / "student")


def test_its_checkpoint_is_no_teacher_for_it_holds_the_floats_before_rounding(home, run, tmp_path):
    teacher = {"model": "mlp(widths=(16,), classes=3)", "steps": 0}
    for folder, refused in ((run, True), (run / "control", True), (run / "floats", False)):
        config = config_of("mlp", home, teachers={"big": {**teacher, "checkpoint": str(folder)}})
        if not refused:
            check_config(config, tmp_path)
            continue
        with pytest.raises(
            ConfigError, match=r"teachers.big.checkpoint: .*was trained with student.quantized"
        ) as error:
            check_config(config, tmp_path)
        assert f"Set it to {run}/floats, the same student" in str(error.value) and "/hub" not in str(error.value)


def test_a_folder_of_an_earlier_version_is_read(run, tmp_path):
    hub = shutil.copytree(run / "floats/hub", tmp_path / "hub")
    about = {
        name: x for name, x in json.loads((hub / ABOUT).read_text()).items() if name not in ("quantized", "ranges")
    }
    seal.write(hub / ABOUT, {name: x for name, x in about.items() if name != "seal"})
    seal.seal_folder(hub)
    assert jaxdistill.load(hub).about.quantized == ""


@pytest.mark.slow
def test_a_network_with_statistics_keeps_them_when_it_is_rounded_afterwards(home, tmp_path):
    config = quantized("resnet", home, "aware(weights=8, inputs=16)", steps=3)
    rows = {row["name"]: row for row in jaxdistill.distill(config, tmp_path, QUIET).rows}
    assert abs(rows["student rounded afterwards"]["nll"] - rows["student in floats"]["nll"]) < 0.01
    found = jaxdistill.load(tmp_path).predict(test_records("resnet", home), batch_size=16)
    np.testing.assert_array_equal(found.predicted, answers(tmp_path / "student")["predicted"])
    np.testing.assert_allclose(found.confidence, answers(tmp_path / "student")["confidence"], rtol=2e-6)


def test_ranges_that_are_not_those_of_the_model_are_damage(run, tmp_path):
    names = list(json.loads((run / "student/hub" / ABOUT).read_text())["ranges"])
    whole = {name: [-1.0, 1.0] for name in names}
    wrong = [{names[0]: [-1.0, 1.0]}, {**whole, "other": [-1.0, 1.0]}, *({**whole, names[0]: x} for x in BAD_RANGES)]
    for number, ranges in enumerate(wrong):
        hub = shutil.copytree(run / "student/hub", tmp_path / str(number))
        about = json.loads((hub / ABOUT).read_text())
        seal.write(hub / ABOUT, {**{name: x for name, x in about.items() if name != "seal"}, "ranges": ranges})
        seal.seal_folder(hub)
        with pytest.raises(DamageError, match="is damaged"):
            jaxdistill.load(hub)


BAD_RANGES = [[float("nan"), 1.0], [0.5, 1.0], [1.0, -1.0], [-1.0, 0.0, 1.0], "ab", None]


def test_the_folder_of_another_model_of_the_run_is_noticed(run, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(again / "student/hub")
    shutil.copytree(run / "floats/hub", again / "student/hub")
    with pytest.raises(DamageError, match=r"holds the model 'student in floats', not 'student'\. Delete that folder"):
        jaxdistill.load(again)


def test_a_repeated_run_keeps_what_was_measured_of_its_files(run, home, tmp_path):
    again = shutil.copytree(run, tmp_path / "again")
    assert command("export", again, "--to", "stablehlo", "--model", "floats") == 0
    jaxdistill.distill(quantized("mlp", home), again, QUIET)
    kept = json.loads((again / "results.json").read_text())["exports"]
    assert [entry["name"] for entry in kept if entry["model"] == "floats"][-1] == "stablehlo"
    assert "Exported files" in (again / "report.html").read_text()


THREADS = ({"threads": 999}, "exports.phone.threads: 999 are more than")


@pytest.mark.parametrize(("entry", "said"), [THREADS, ({"model": "floats"}, "")])
def test_exports_of_a_config_are_checked_before_anything_is_trained(entry, said, home, tmp_path):
    config = quantized("mlp", home, exports={"phone": {"to": "onnx", **entry}})
    if not said:
        check_config(config, tmp_path)
        return
    with pytest.raises(ConfigError, match=said):
        check_config(config, tmp_path)


@pytest.mark.slow
def test_texts_are_compared_with_the_float_student_too(home, tmp_path):
    config = quantized("decoder", home, "aware(weights=8)", chunks=2)
    rows = jaxdistill.distill(config, tmp_path, QUIET).rows
    assert [row["name"] for row in rows][1:4] == ["student", "student in floats", "student rounded afterwards"]
    assert all(np.isfinite(row["nll"]) for row in rows)
