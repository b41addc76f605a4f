"""Records that change between two parts of a run are noticed, and other numbers of steps are told."""

import json

import numpy as np
import pytest
from own_runs import QUIET, config_of

import jaxdistill
from jaxdistill import differ
from jaxdistill.core.errors import ConfigError
from jaxdistill.run.outcomes import continued
from jaxdistill.run.record_identity import FILE


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
