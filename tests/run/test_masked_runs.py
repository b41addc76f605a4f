"""Tests of runs with a pruned student: its control is pruned too, and a resumed run has the same bits."""

import shutil

import numpy as np
import pytest
from own_runs import QUIET, config_of
from runs import differences, saved

import jaxdistill
from jaxdistill import differ
from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.run.distill import check_config


def masked(home, spec: str, **more):
    return differ(config_of("mlp", home), student={"masks": spec}, **more)


def test_student_and_control_are_pruned_and_the_teacher_is_not(home, capsys):
    spec = "sparse(share=0.75, by='wanda', start=0.0, end=0.5, every=1)"
    result = jaxdistill.distill(masked(home, spec), home / "masked", QUIET)
    rows = {row["name"]: row for row in seal.read(home / "masked" / "results.json", {"rows": list})["rows"]}
    assert rows["student"]["zeros"] == pytest.approx(0.75, abs=0.01) and rows["control"]["zeros"] > 0.7
    assert "zeros" not in rows["teacher big"] and "Zeros (%)" in (home / "masked" / "report.html").read_text()
    student, teacher = (jaxdistill.load(home / "masked", name) for name in ("student", "teachers/big"))
    share = lambda model: np.mean(np.asarray(model.float_variables.params["layers/0/kernel"]) == 0)
    assert share(student) == pytest.approx(0.75, abs=0.01) and share(teacher) == 0
    assert not [name for name in student.float_variables.state if "input_square" in name]
    assert any("input_square" in name for name in result.variables["student"].state)


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_has_the_same_bits(home):
    config = masked(home, "sparse(share=0.5, by='wanda', start=0.25, end=0.75, every=1)", control=False)
    folder = home / "resumed"
    jaxdistill.distill(config, folder, QUIET)
    before = saved(folder / "student")
    assert any("input_square" in name for name in before) and any("kept" in name for name in before)
    (folder / "results.json").unlink()
    (folder / "student" / "result.json").unlink()
    (folder / "student" / "checkpoints" / "manifests" / "4.json").unlink()
    shutil.rmtree(folder / "student" / "checkpoints" / "steps" / "4")
    jaxdistill.distill(config, folder, QUIET)
    assert differences(before, saved(folder / "student")) == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sparse()", "student.masks: sparse: give a share"),
        ("spares(share=0.5)", "student.masks: unknown pruning 'spares'. Did you mean 'sparse'"),
        ("sparse(share=0.5, only='nothing')", "student.masks: only='nothing' matches no kernel"),
        ("sparse(keep=1, of=7)", "student.masks: .* no multiple of 7"),
    ],
)
def test_a_wrong_mask_is_refused_before_anything_is_trained(spec, said, home):
    with pytest.raises(ConfigError, match=said):
        check_config(masked(home, spec), None)
