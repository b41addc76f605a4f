"""Tests of checkpoints in a bucket, served by an emulator on this machine: saving, damage, addresses and errors."""

import json
import re
import time

import buckets
import pytest
import runs
from saved_states import ACCURACIES, abstract, reopened, same, state

from jaxdistill.core import bucket
from jaxdistill.core.checkpoint import Checkpoints, load_variables
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.manifest import CheckpointError, manifests
from jaxdistill.core.types import Variables
from jaxdistill.run import exit_codes, failures


@pytest.fixture(scope="module", autouse=True)
def server():
    with buckets.served() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def ended():
    yield
    runs.end_processes()


@pytest.fixture
def folder(tmp_path):
    """Save checkpoints of four steps in the bucket, where the best and the last two stay; return their local folder."""
    folder = tmp_path / "run" / "student" / "checkpoints"
    with Checkpoints(folder, address=f"gs://{buckets.BUCKET}/runs/") as checkpoints:
        for step, accuracy in ACCURACIES.items():
            checkpoints.save(step, state(step), {"next": step}, {"accuracy": accuracy})
    return folder


def flip(step) -> None:
    """Flip a bit in every 16th byte of all objects with values of a step, because some of them are never read."""
    for folder in (step / "state" / "d", step / "state" / "ocdbt.process_0" / "d"):
        for file in folder.iterdir():
            content = bytearray(file.read_bytes())
            for place in range(0, len(content), 16):
                content[place] ^= 1
            file.write_bytes(bytes(content))


def test_the_folder_holds_the_address_alone(folder):
    assert [file.name for file in folder.iterdir()] == [bucket.POINTER]
    place = bucket.checkpoints_path(folder)
    assert str(place).startswith(f"gs://{buckets.BUCKET}/runs/run-") and place.name == "student"
    assert list(manifests(folder)) == [10, 30, 40]
    assert sorted(file.name for file in (place / "steps").iterdir()) == ["10", "30", "40"]
    assert sorted(file.name for file in (place / "manifests").iterdir()) == ["10.json", "30.json", "40.json"]


def test_a_state_comes_back_to_the_bit(folder):
    step, restored, said = reopened(folder)
    assert (step, said) == (40, [])
    assert same(restored, state(40))
    student = Variables(state(10).params["student"], state(10).state["student"])
    assert same(load_variables(folder, "best", abstract(student)), student)


def test_a_changed_byte_is_noticed_and_the_last_good_step_is_used(folder):
    place = bucket.checkpoints_path(folder)
    flip(place / "steps" / "40")
    step, restored, said = reopened(folder)
    assert (step, len(said)) == (30, 1) and said[0].startswith("checkpoint of step 40 is set aside: ")
    assert same(restored, state(30))
    aside = place / "damaged"
    assert sorted(file.name for file in aside.iterdir()) == ["40-0", "40-0.json", "40-0.txt"]
    assert (aside / "40-0.txt").read_text().strip() in said[0]
    assert not (place / "steps" / "40").exists()


def test_a_save_that_was_never_finished_is_set_aside(folder):
    (bucket.checkpoints_path(folder) / "manifests" / "40.json").unlink()
    step, _, said = reopened(folder)
    assert step == 30 and "40.json is missing: the save was never finished" in said[0]
    with Checkpoints(folder) as checkpoints:  # the step can be saved again
        checkpoints.save(40, state(40), {"next": 40}, {"accuracy": 0.2})
    assert reopened(folder)[0] == 40


def test_if_all_are_damaged_nothing_is_restored(folder):
    for step in manifests(folder):
        flip(bucket.checkpoints_path(folder) / "steps" / str(step))
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        reopened(folder)


def test_two_runs_of_one_name_have_places_of_their_own(tmp_path):
    places = []
    for parent in ("a", "b"):
        bucket.point(tmp_path / parent / "run" / "student" / "checkpoints", f"gs://{buckets.BUCKET}/runs")
        places.append(bucket.checkpoints_path(tmp_path / parent / "run" / "student" / "checkpoints"))
    assert places[0] != places[1] and places[0].parent.parent == places[1].parent.parent


def test_an_address_that_was_changed_is_noticed(folder):
    content = json.loads((folder / bucket.POINTER).read_text())
    content["address"] = content["address"].replace("run-", "nur-")
    (folder / bucket.POINTER).write_text(json.dumps(content))
    with pytest.raises(DamageError, match=r"bucket\.json has changed since it was written"):
        manifests(folder)
    del content["seal"]
    (folder / bucket.POINTER).write_text(json.dumps(content))
    with pytest.raises(DamageError, match=r"bucket\.json has no seal"):
        manifests(folder)


def test_the_place_has_the_names_of_run_and_model(tmp_path):
    stage = tmp_path / "my run [1]" / "teachers" / "big"
    (tmp_path / "my run [1]").mkdir()
    (tmp_path / "my run [1]" / "config.json").write_text("{}")
    bucket.point(stage / "checkpoints", f"gs://{buckets.BUCKET}/x/")
    place = str(bucket.checkpoints_path(stage / "checkpoints"))
    assert re.fullmatch(rf"gs://{buckets.BUCKET}/x/my_run__1_-[0-9a-f]{{8}}/teachers/big", place)
    before = (stage / "checkpoints" / bucket.POINTER).read_bytes()
    bucket.point(stage / "checkpoints", "gs://another")  # the place of checkpoints never changes
    assert (stage / "checkpoints" / bucket.POINTER).read_bytes() == before


def test_a_file_in_place_of_a_folder_has_no_address(tmp_path):
    (tmp_path / "file").touch()
    assert bucket.checkpoints_path(tmp_path / "file" / "checkpoints") == tmp_path / "file" / "checkpoints"


def test_a_process_that_never_sees_the_address_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "WAIT", 0.0)
    with pytest.raises(ConfigError, match=r"does not appear in another process\. Name a folder that all"):
        bucket.wait_for(tmp_path)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(bucket.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package 'gcsfs'; pip install 'jaxdistill\[buckets\]'"):
        bucket.path("gs://distilled/runs")


def test_without_a_network_the_check_ends_at_once(monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 cannot be reached"):
        bucket.require_writable("gs://distilled/runs", "checkpoints.bucket")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://distilled/runs", "is not a bucket address; write 'gs://BUCKET/FOLDER'"),
        ("gs://", "is not a bucket address"),
        ("runs", "is not a bucket address"),
        ("gs://distilled/a[1]", "is not a bucket address"),
        ("gs://distilled/a b", "is not a bucket address"),
        (f"gs://{buckets.BUCKET}-of-another/runs", "cannot be written and read"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_refused(address, message):
    with pytest.raises(ConfigError, match=message) as error:
        bucket.require_writable(address, "checkpoints.bucket")
    assert error.value.path == "checkpoints.bucket"


def test_checking_leaves_nothing_behind():
    address = f"gs://{buckets.BUCKET}/checked"
    bucket.require_writable(address, "checkpoints.bucket")
    assert not bucket.path(address).exists()


@pytest.mark.parametrize(
    "module", ["aiohttp.client", "gcsfs.retry", "google.auth.exceptions", "requests.exceptions", ""]
)
def test_an_error_of_the_bucket_is_no_bug(module):
    kind = type("Refused", (Exception,), {"__module__": module or "builtins"})
    code, text = failures.explain(kind("timeout" if module else "Error reading gs://distilled/runs/x: UNAVAILABLE"))
    assert code == 2 and text.startswith("the bucket does not answer (")


@pytest.mark.parametrize("status", ["NOT_FOUND", "INTERNAL", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"])
def test_a_status_of_the_bucket_is_no_bug(status):
    code, text = failures.explain(ValueError(f"{status}: Error reading gs://distilled/runs/x: HTTP response"))
    assert code == 2 and text.startswith("the bucket does not answer (")


def test_a_bug_is_a_bug_though_its_text_names_a_bucket(monkeypatch):
    monkeypatch.setattr(failures, "registered_by_others", tuple)  # other tests may have registered parts
    code, _ = failures.explain(TypeError("gs://distilled/runs/x: unsupported operand"))
    assert code == exit_codes.BUG


@pytest.mark.slow
def test_a_run_keeps_its_checkpoints_there_and_goes_on_from_them(tmp_path, capsys):
    words = f"--config.checkpoints.bucket=gs://{buckets.BUCKET}/runs", "--config.control=False"
    assert runs.run(tmp_path / "run", *words) == 0
    (bucket.checkpoints_path(tmp_path / "run/student/checkpoints") / "manifests" / "40.json").unlink()
    (tmp_path / "run/student/result.json").unlink()
    assert runs.run(tmp_path / "run", *words) == 0
    assert "student  resumed at step 30" in capsys.readouterr().out
    assert runs.run(tmp_path / "whole", "--config.control=False") == 0
    ends = (runs.saved(tmp_path / name / "student") for name in ("run", "whole"))
    assert runs.differences(*ends) == []
    assert not list((tmp_path / "run").rglob("steps"))
    assert runs.run(tmp_path / "run", "--config.control=False") == 2  # the place of a run's checkpoints cannot change


@pytest.mark.slow
def test_processes_share_a_bucket_and_one_that_is_killed_costs_nothing(tmp_path):
    words = *runs.SLOWLY, "--config.optimizer=sgd()", "--config.mesh.data=2", "--config.mesh.fsdp=2"
    for process in runs.together(tmp_path / "whole", *words):
        runs.finish(process)
    there = f"--config.checkpoints.bucket=gs://{buckets.BUCKET}/shared"
    workdir = tmp_path / "killed"
    processes = runs.together(workdir, *words, there)
    student = workdir / "student" / "checkpoints"
    runs.meet(processes[0], (student / bucket.POINTER).is_file)
    runs.meet(processes[0], (bucket.checkpoints_path(student) / "manifests" / "10.json").exists, pause=0.05)
    processes[1].kill()
    assert processes[0].wait(timeout=150) != 0  # JAX waits 100 s for a sign of life
    first, _ = map(runs.finish, runs.together(workdir, *words, there))
    assert "student  resumed at step" in first[0]
    runs.assert_same_end(workdir, tmp_path / "whole")
    shards = [file.name for file in (bucket.checkpoints_path(student) / "steps" / "40" / "state").iterdir()]
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= set(shards)  # each process wrote its own shards
