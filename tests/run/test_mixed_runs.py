"""Check that files of another run in a run's folder are noticed, and made again where this is possible."""

import json
import shutil

import pytest
import runs

import jaxdistill
from jaxdistill.core import seal
from jaxdistill.core.manifest import CheckpointError, check_owner, manifests


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.compilation_cache(tmp_path_factory.getbasetemp() / "programs"):
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return the folders of two runs that differ in the seed alone, so that files of one would fit the other."""
    folder = tmp_path_factory.mktemp("two")
    for seed in (0, 1):
        assert runs.run(folder / str(seed), f"--config.seed={seed}", "--config.control=False") == 0
    return folder / "0", folder / "1"


@pytest.fixture
def mine(two, tmp_path):
    return shutil.copytree(two[0], tmp_path / "mine")


def accuracy(run):
    return runs.rows(run)["student"]["accuracy"]


def resume(run, capsys, *words):
    capsys.readouterr()
    code = runs.run(run, "--config.seed=0", "--config.control=False", *words)
    return code, "".join(capsys.readouterr())


def test_all_files_of_a_run_have_its_name(two):
    names = set()
    for run in two:
        (name,) = {
            *(seal.read(run / file, {"run": str})["run"] for file in ("config.json", "results.json")),
            *(seal.read(run / stage / "result.json", {"run": str})["run"] for stage in ("student", "teachers/big")),
            *(each["run"] for each in manifests(run / "student/checkpoints").values()),
            json.loads((run / "student/hub/jaxdistill.json").read_text())["run"],
        }
        names.add(name)
    assert len(names) == 2


def test_results_of_another_run_are_not_believed(two, mine, capsys):
    shutil.copy(two[1] / "results.json", mine)
    code, said = resume(mine, capsys)
    assert code == 4 and "are of two runs. Restore the file that was replaced, or delete results.json" in said
    assert runs.main.run(["compare", str(mine), str(two[0]), "--out", str(mine / "page")]) == 4
    assert "results.json is of another run than config.json. Restore it, or delete it" in capsys.readouterr().err
    (mine / "results.json").unlink()
    assert resume(mine, capsys)[0] == 0
    assert accuracy(mine) == accuracy(two[0])


def test_the_result_of_a_model_of_another_run_is_made_again(two, mine, capsys):
    shutil.copy(two[1] / "student/result.json", mine / "student")
    code, said = resume(mine, capsys)
    assert code == 0 and "result.json is of another run" in said.replace("\n", " ")
    assert accuracy(mine) == accuracy(two[0])


def test_checkpoints_of_another_run_are_refused(two, mine, capsys):
    for name in ("student/checkpoints", "student/result.json", "results.json"):
        place = mine / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    shutil.copytree(two[1] / "student/checkpoints", mine / "student/checkpoints")
    code, said = resume(mine, capsys)
    assert code == 4 and "student/checkpoints has the checkpoints of another run. Restore the folder" in said


def test_a_checkpoint_of_an_earlier_version_has_no_name(tmp_path):
    check_owner(tmp_path, {"owner": "student"}, "student", "mine")
    with pytest.raises(CheckpointError, match="of another run"):
        check_owner(tmp_path, {"owner": "student", "run": "other"}, "student", "mine")


def test_a_teacher_is_read_from_its_own_folder(two, mine, tmp_path, capsys):
    """Check that a teacher's checkpoints in the student's folder are refused, even by a network of their shapes."""
    places = mine / "student/checkpoints", mine / "teachers/big/checkpoints"
    shutil.move(places[0], tmp_path / "aside")
    shutil.move(places[1], places[0])
    words = f"--config.teachers.big.checkpoint={mine}", "--config.teachers.big.steps=0", "--config.control=False"
    assert runs.run(tmp_path / "new", *words) == 2
    assert "has the checkpoints of 'teacher big' and not of 'student'" in capsys.readouterr().err


def without_names(run):
    """Rewrite the files of a run without its name, as an earlier version would have written them."""
    files = [*run.rglob("*.json")]
    for file in files:
        content = json.loads(file.read_text())
        if isinstance(content, dict) and "run" in content and file.name != "jaxdistill.json":
            seal.write(file, {key: x for key, x in content.items() if key not in ("run", "seal")})
    for hub in run.rglob("hub/jaxdistill.json"):
        content = json.loads(hub.read_text())
        seal.write(hub, {key: x for key, x in content.items() if key not in ("run", "seal")})
        seal.seal_again(hub)


def test_a_finished_run_of_an_earlier_version_is_repeated_and_compared(mine, two, tmp_path, capsys):
    without_names(mine)
    for _ in range(2):
        code, said = resume(mine, capsys)
        assert code == 0, said
    assert accuracy(mine) == accuracy(two[0])
    assert json.loads((mine / "results.json").read_text()).get("run") != ""
    assert runs.main.run(["compare", str(mine), str(two[1]), "--out", str(tmp_path / "page")]) == 0
    assert jaxdistill.load(mine).about.stage == "student"


def test_a_run_that_lost_its_config_can_be_compared(mine, two, tmp_path, capsys):
    (mine / "config.json").unlink()
    assert runs.main.run(["compare", str(mine), str(two[1]), "--out", str(tmp_path / "page")]) == 0


def test_the_result_of_another_model_of_the_run_is_made_again(two, mine, capsys):
    shutil.copy(mine / "teachers/big/result.json", mine / "student")
    assert runs.main.run(["compare", str(two[1]), str(mine), "--out", str(mine / "page")]) == 4
    assert "student/result.json is of another run or model. Delete it" in capsys.readouterr().err
    code, said = resume(mine, capsys)
    assert code == 0 and "student/result.json is of another run or model" in said.replace("\n", " ")
    assert accuracy(mine) == accuracy(two[0])


@pytest.mark.parametrize("source", ["teachers/big/hub", "the other run"])
def test_the_folder_of_another_model_is_written_again(two, mine, source, capsys):
    shutil.rmtree(mine / "student/hub")
    shutil.copytree(two[1] / "student/hub" if source == "the other run" else mine / source, mine / "student/hub")
    code, said = resume(mine, capsys)
    assert code == 0 and "student/hub has changed since it was written, or holds another model" in said
    weights = [(run / "student/hub/model.safetensors").read_bytes() for run in (mine, two[0])]
    assert weights[0] == weights[1]
