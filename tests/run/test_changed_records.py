"""Records that change between two parts of a run are noticed, and other numbers of steps are told."""

import json

import numpy as np
import pytest
from own_runs import QUIET, config_of

import jaxdistill
from jaxdistill import differ
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.run.outcomes import continued
from jaxdistill.run.record_identity import FILE
from jaxdistill.run.study import run_or_resume


def test_a_repeated_run_notices_that_a_label_has_changed(home, tmp_path):
    files = dict(np.load(home / "images.npz"))
    np.savez(tmp_path / "images.npz", **files)
    config = differ(
        config_of("mlp", home), data={"name": f"table(path={str(tmp_path / 'images.npz')!r}, image='x', label='y')"}
    )
    config = differ(config, student={"model": "mlp(widths=(16,), classes=3)"}, steps=2)
    config = differ(config, teachers={"big": {"model": "mlp(widths=(16,), classes=3)", "steps": 2}})
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    known = json.loads((tmp_path / "run" / FILE).read_text())["contents"]
    assert set(known) == {"train", "test"} and all(known.values())
    jaxdistill.distill(config, tmp_path / "run", QUIET)  # unchanged records are fine
    files["y"] = (files["y"] + 1) % 3
    np.savez(tmp_path / "images.npz", **files)
    for changed in (config, differ(config, steps=4)):
        with pytest.raises(ConfigError, match=r"have changed since the run in .* began\. Restore them") as error:
            jaxdistill.distill(changed, tmp_path / "run", QUIET)
        assert str(error.value).startswith("data.name: ")
    (tmp_path / "run" / FILE).write_text("{}")  # damaged: written again, as by a run of an earlier version
    jaxdistill.distill(differ(config, steps=4), tmp_path / "run", QUIET)
    assert json.loads((tmp_path / "run" / FILE).read_text())["contents"] != known


def test_another_number_of_steps_is_told():
    assert continued([], 4) == continued([{"steps": 4}], 4) == ""
    said = (
        "The run was begun with 9 steps, and went on with 4: a model that was trained in both parts had the schedules"
    )
    assert continued([{"steps": 9}, {"steps": 4}], 4).startswith(said)


@datasets.register
def kept_in(folder_of_arrays: str, split: str):
    """Records from one file for each split, as a user's own data set has them."""
    with np.load(f"{folder_of_arrays}/{split}.npz") as arrays:
        return [{"image": x, "label": y} for x, y in zip(arrays["x"], arrays["y"], strict=True)]


def test_a_test_record_that_changes_is_noticed_too_and_a_missing_file_is_told(home, tmp_path, capsys):
    draw = np.random.default_rng(0)
    made = lambda: {"x": draw.integers(0, 256, (20, 4, 4, 1), np.uint8), "y": np.arange(20) % 3}
    arrays = {"train": made(), "test": made()}
    for split, each in arrays.items():
        np.savez(tmp_path / f"{split}.npz", **each)
    data, model = {"name": f"kept_in({str(tmp_path)!r})"}, {"model": "mlp(widths=(4,), classes=3)"}
    config = differ(config_of("mlp", home), data=data, student=model, steps=1, teachers={"big": {**model, "steps": 1}})
    run = tmp_path / "run"
    jaxdistill.distill(config, run, QUIET)
    arrays["test"]["y"] = (arrays["test"]["y"] + 1) % 3
    np.savez(tmp_path / "test.npz", **arrays["test"])
    with pytest.raises(ConfigError, match="the records of test have changed"):
        jaxdistill.distill(config, run, QUIET)
    (run / FILE).unlink()
    jaxdistill.distill(config, run, QUIET)
    told = f"{run / FILE} is missing: nobody can tell whether the run began with these records"
    assert told in capsys.readouterr().err


def test_a_study_does_not_put_runs_on_other_records_beside_finished_ones(home, tmp_path):
    files = dict(np.load(home / "images.npz"))
    np.savez(tmp_path / "images.npz", **files)
    name, model = f"table(path={str(tmp_path / 'images.npz')!r}, image='x', label='y')", "mlp(widths=(4,), classes=3)"
    config = differ(config_of("mlp", home), data={"name": name}, steps=1, student={"model": model}, control=False)
    config = differ(config, teachers={}, objective={"cross_entropy": {}})
    rows = run_or_resume(config, tmp_path / "run")
    assert run_or_resume(config, tmp_path / "run") == rows
    files["y"] = (files["y"] + 1) % 3
    np.savez(tmp_path / "images.npz", **files)
    with pytest.raises(ConfigError, match="have changed since the run"):
        run_or_resume(config, tmp_path / "run")
