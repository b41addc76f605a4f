"""Tests of manifests of checkpoints: comparison of arrays, choice of a step, damage, owners and earlier versions."""

import json

import jax
import pytest
from saved_states import abstract, state

from jaxdistill.core import manifest, seal
from jaxdistill.core.checkpoint import Checkpoints, check_variables, load_variables
from jaxdistill.core.manifest import CheckpointError, array_entries, choose_step, manifests, mismatches
from jaxdistill.core.types import Variables


@pytest.fixture
def folder(tmp_path):
    """Save checkpoints of two steps, and return their folder."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (30, 40):
            checkpoints.save(step, state(step), {"next": step}, {"accuracy": 0.5})
    return tmp_path / "checkpoints"


def test_a_model_is_checked_array_by_array_scalars_and_vectors_too(folder):
    file = folder / "manifests" / "40.json"
    whole = seal.read(file, {"arrays": dict})
    wanted = Variables(state(40).params["student"], state(40).state["student"])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted)
    names = [name for name in whole["arrays"] if name.startswith(("params/student/", "state/student/"))]
    assert {len(whole["arrays"][name][0]) for name in names} >= {1, 2}
    for name in names:
        entry = [*whole["arrays"][name][:2], "0" * len(whole["arrays"][name][2])]
        seal.write(file, {**whole, "arrays": {**whole["arrays"], name: entry}})
        with pytest.raises(CheckpointError, match=name.partition("/student/")[2]):
            load_variables(folder, "40", shapes)


def test_an_array_of_another_type_is_another_models():
    tree = {"a": jax.ShapeDtypeStruct((2, 3), "float32")}
    manifest = {"arrays": array_entries(tree)}
    assert mismatches(manifest, tree) == []
    other = {"a": jax.ShapeDtypeStruct((2, 3), "bfloat16")}
    assert mismatches(manifest, other) == ["a is [2, 3] float32, needed [2, 3] bfloat16"]


@pytest.mark.parametrize("lost", ["manifests/40.json", "steps/40"])
def test_an_older_checkpoint_in_place_of_the_last_is_told(folder, lost, capsys):
    assert choose_step(folder, "last") == 40 and capsys.readouterr().err == ""
    (folder / lost).rename(folder / "elsewhere")
    assert choose_step(folder, "last") == 30
    said = f"note: {folder}: the checkpoint of step 40 is missing, incomplete or damaged; that of step 30 is used\n"
    assert capsys.readouterr().err == said


def test_a_result_of_a_later_step_tells_that_the_last_checkpoint_is_gone(folder, capsys):
    for lost in ("manifests/40.json", "steps/40"):
        (folder / lost).rename(folder / lost.replace("/", "_"))
    assert choose_step(folder, "last") == 30 and capsys.readouterr().err == ""  # nothing tells that there was another
    seal.write(folder.parent / manifest.RESULT, {"step": 40})
    assert choose_step(folder, "last") == 30
    assert "the checkpoint of step 40 is missing, incomplete or damaged; that of step 30" in capsys.readouterr().err


def test_the_first_known_quality_ranks():
    values = {"similarity": 0.1, "agreement": 0.2, "image_text_r5": 0.3, "accuracy": 0.4, "loss": 9.0}
    for name in manifest.QUALITIES:
        assert manifest.quality(values) == values.pop(name)
    assert (
        manifest.quality(values) is None
        and manifest.QUALITIES[0] == "accuracy"
        and manifest.QUALITIES[3] == "similarity"
    )


def test_of_equal_steps_the_newest_is_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {}, {"accuracy": 0.5})
    assert choose_step(tmp_path, "best") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"arrays": {"x": 3}},
        {"arrays": {"x": [[2], "float32"]}},
        {"metrics": {"accuracy": "high"}},
        {"files": {"x": 3}},
        {"seconds": "long"},
        {"data": [1]},
    ],
)
def test_a_manifest_whose_values_have_other_types_counts_as_damaged(folder, wrong):
    file = folder / "manifests" / "40.json"
    content = json.loads(file.read_text()) | wrong
    content.pop("seal")  # earlier versions wrote no seal
    file.write_text(json.dumps(content))
    assert list(manifests(folder)) == [30]


def test_a_manifest_with_hashes_of_files_is_one_of_an_earlier_version(folder):
    file = folder / "manifests" / "40.json"
    content = json.loads(file.read_text())
    arrays = {name: entry[:2] for name, entry in content["arrays"].items()}
    earlier = {"arrays": arrays, "metrics": content["metrics"], "files": {"d/x": [17, "0" * 64]}}
    file.write_text(json.dumps(earlier))
    assert list(manifests(folder)) == [30, 40]
    for wrong in ([17], [17, "0" * 64, 1], 17):
        file.write_text(json.dumps({**earlier, "files": {"d/x": wrong}}))
        assert list(manifests(folder)) == [30]


def test_a_checkpoint_of_a_control_is_not_a_students(tmp_path):
    """Check the owner's name, because both have arrays of the same names and shapes, and values are not read here."""
    with Checkpoints(tmp_path, owner="control") as checkpoints:
        checkpoints.save(3, state(3), {}, {})
    shapes = abstract(Variables(state(3).params["student"], state(3).state["student"]))
    assert check_variables(tmp_path, "last", shapes, owner="control")[0] == 3
    with pytest.raises(CheckpointError, match="has the checkpoints of 'control' and not of 'student'"):
        check_variables(tmp_path, "last", shapes, owner="student")


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    with Checkpoints(tmp_path, run="first") as checkpoints:
        checkpoints.save(3, state(3), {}, {})
    for run in ("first", ""):
        with Checkpoints(tmp_path, run=run) as checkpoints:
            assert checkpoints.restore(abstract(state(3))).step == 3
    other = pytest.raises(CheckpointError, match="has the checkpoints of another run")
    with Checkpoints(tmp_path, run="second") as checkpoints, other:
        checkpoints.restore(abstract(state(3)))


def test_files_of_an_earlier_version_are_compared_with_its_checksums(tmp_path):
    file = tmp_path / "steps" / "7" / "d" / "x"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"values")
    written = {"files": {"d/x": [6, seal.sha256(file)]}}
    assert manifest.damaged_files(tmp_path, 7, written) == []
    for content in (b"Values", b"value"):
        file.write_bytes(content)
        assert "has changed since it was written" in manifest.damaged_files(tmp_path, 7, written)[0]
    file.unlink()
    assert manifest.damaged_files(tmp_path, 7, written) == [f"{file} is missing"]
