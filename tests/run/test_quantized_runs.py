"""A student that is trained for few bits: its controls, its files, and what may be done with them."""

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
from jaxdistill.core.errors import ConfigError
from jaxdistill.export.model_folder import ABOUT
from jaxdistill.run.distill import check

AWARE = "aware(weights=4, ranges='running', scales='learned', start=0.5)"


def quantized(family: str, home, spec: str = AWARE, **more):
    return differ(config_of(family, home), student={"quantized": spec}, **more)


@pytest.fixture(scope="module")
def run(home):
    """A folder of a finished run of a perceptron."""
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
    assert "student in floats" in (run / "report.html").read_text()
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
            check(config, tmp_path)
            continue
        with pytest.raises(
            ConfigError, match=r"teachers.big.checkpoint: .*was trained with student.quantized"
        ) as error:
            check(config, tmp_path)
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
def test_texts_are_compared_with_the_float_student_too(home, tmp_path):
    config = quantized("decoder", home, "aware(weights=8, block=32)", chunks=2)
    rows = jaxdistill.distill(config, tmp_path, QUIET).rows
    assert [row["name"] for row in rows][1:4] == ["student", "student in floats", "student rounded afterwards"]
    assert all(np.isfinite(row["nll"]) for row in rows)
