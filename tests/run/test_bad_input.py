"""Check that a mistake in a config gives one message and exit code 2, before anything compiles or is written."""

import inspect
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from mistakes import MISTAKES

from jaxdistill.core.checkpoint import Checkpoints
from jaxdistill.core.registry import datasets
from jaxdistill.models.build import build_model as model
from jaxdistill.run.config import override
from jaxdistill.run.distill import check_config
from jaxdistill.run.rules import data, devices, exports, row_selection, run, specs, stage, terms
from jaxdistill.run.validate import RULES


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDISTILL_DATA", str(tmp_path_factory.mktemp("data")))  # messages must not depend on local data
        yield


def refused(capsys, workdir: Path, *words: str, source: Path = runs.TINY) -> str:
    """Return the message of a run that must be refused, and check that it compiles nothing and changes no file."""
    files = sorted(workdir.rglob("*"))
    before = len(runs.compilations)
    assert runs.run(workdir, *words, source=source) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: "), said.err
    assert said.err.count("\n") == 1, said.err
    assert runs.compilations[before:] == []
    assert sorted(workdir.rglob("*")) == files
    return said.err.removeprefix("error: ").strip()


def test_every_rule_is_listed_once():
    modules = (data, devices, exports, row_selection, run, specs, stage, terms)
    functions = [f for module in modules for f in vars(module).values() if inspect.isfunction(f)]
    rules = {f for f in functions if f.__module__.startswith("jaxdistill.run.rules") and not f.__name__.startswith("_")}
    listed = [rule for group in RULES.values() for rule in group]
    assert set(listed) == rules and len(listed) == len(rules)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_with_path_value_and_cure(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changes, path, value, cure = MISTAKES[mistake]
    message = refused(capsys, tmp_path / "run", *(f"--config.{change}" for change in changes))
    assert message.startswith(f"{path}: ")
    assert value in message
    assert cure in message
    assert list(tmp_path.iterdir()) == []  # no workdir, and no file `pwned` of a spec that was run as code


@pytest.mark.parametrize("word", ["--config.steps", "steps=3", "--steps=3", "--verbose"])
def test_a_word_that_is_no_change_is_shown_how_changes_are_written(word, tmp_path, capsys):
    message = refused(capsys, tmp_path / "run", word)
    assert message.startswith(f"{word}: unknown argument")
    assert ("Write --config.steps=VALUE" if word == "--config.steps" else "--config.a.b=value") in message


# Faults of a config file: (the text of the file, what the message says).
FILES = {
    "no get_config": ("steps = 3\n", "has no function get_config()"),
    "get_config of something else": ("def get_config():\n    return {'steps': 3}\n", "returned dict; return make(...)"),
    "a syntax error": ("def get_config():\n    return make(steps=\n", "fails in line 2 (SyntaxError"),
    "an import that fails": ("import nonesuch\n", "fails in line 1 (ModuleNotFoundError: No module named 'nonesuch')"),
    "an error without words": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\n\nraise Odd\n",
        "fails in line 5 (Odd: )",
    ),
    "an end of Python": ("\nexit(0)\n", "fails in line 2 (SystemExit: 0)"),
    "no ordinary error": ("class Odd(BaseException): ...\n\nraise Odd('x')\n", "fails in line 3 (Odd: x)"),
    "an error in get_config": ("\ndef get_config():\n    return [][1]\n", "fails in line 3 (IndexError"),
}


@pytest.mark.parametrize("mistake", FILES)
def test_a_config_file_that_cannot_be_used_is_named(mistake, tmp_path, capsys):
    text, expected = FILES[mistake]
    file = tmp_path / "mine.py"
    file.write_text(text)
    message = refused(capsys, tmp_path / "run", source=file)
    assert message.startswith("--config: ")
    assert str(file) in message
    assert expected in message


def test_a_pipe_is_no_config_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "mine.py")
    message = refused(capsys, tmp_path / "run", source=tmp_path / "mine.py")
    assert message.startswith("--config: ") and "mine.py' is a device or a pipe" in message


def test_a_line_is_found_in_a_file_that_is_named_from_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("\ndef get_config():\n    return [][1]\n")
    assert "'mine.py' fails in line 3 (IndexError" in refused(capsys, Path("run"), source=Path("mine.py"))


@pytest.mark.parametrize(
    "change", ["objective.kd.term=kdd", "rate=fast", "fusion=avrage", "step=online()", "teachers.big.checkpoint=gone"]
)
def test_names_are_judged_before_any_data_are_made(change, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxdistill.data.pipeline.describe_split", lambda *_: pytest.fail("data were looked at"))
    assert refused(capsys, tmp_path / "run", f"--config.{change}").startswith(
        change.split("=")[0].removesuffix(".term")
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"image": np.zeros((8, 8, 1), np.uint8)}, "data.test: the records of 'train' have the field 'label'"),
        ({"image": np.zeros((9, 9, 1), np.uint8), "label": 0}, "data.test: 'image' is [8, 8, 1] uint8 in 'train'"),
        ({"image": np.zeros((8, 8), np.uint8), "label": 0}, "data.test: 'image' is [8, 8, 1] uint8 in 'train'"),
        ({"image": np.zeros((8, 8, 1), np.float32), "label": 0}, "data.test: 'image' is [8, 8, 1] uint8 in 'train'"),
    ],
)
def test_test_records_are_those_of_training_with_labels(other, said, tmp_path, capsys):
    train = {"image": np.zeros((8, 8, 1), np.uint8), "label": 0}

    def uneven(split: str) -> list[dict]:
        return [train if split == "train" else other] * 64

    with runs.registries_as_found():
        datasets.register(uneven)
        assert refused(capsys, tmp_path / "run", "--config.data.name=uneven").startswith(said)


def test_labels_beyond_the_classes_of_the_student_are_refused_if_the_data_set_does_not_count_them(tmp_path, capsys):
    def uncounted(split: str) -> list[dict]:
        return [{"image": np.zeros((8, 8, 1), np.uint8), "label": label % 5} for label in range(64)]

    with runs.registries_as_found():
        datasets.register(uncounted)
        message = refused(capsys, tmp_path / "run", "--config.data.name=uncounted", "--config.data.test=test")
    assert message.startswith("teachers.big.model: ")
    assert "the split 'train' has a label 4; set classes=5" in message


def test_slices_of_one_split_are_compared_by_their_records(tmp_path, capsys):
    records = [{"image": np.zeros((8, 8, 1), np.uint8), "label": 0}] * 100
    slices = {"train": records, "train[:60]": records[:60], "train[60:]": records[60:], "train[59%:]": records[59:]}

    def sliced(split: str) -> list[dict]:
        return slices[split]

    words = ("--config.data.name=sliced", "--config.data.train=train[:60]")
    with runs.registries_as_found():
        datasets.register(sliced)
        message = refused(capsys, tmp_path / "run", *words, "--config.data.test=train[59%:]")
        assert message.startswith("data.test: 'train[59%:]' shares records with data.train='train[:60]'.")
        changes = [("data.name", "sliced"), ("data.train", "train[:60]"), ("data.test", "train[60:]")]
        check_config(override(runs.load(), changes), tmp_path / "run")


GATE = ("fusion=gate()", "roles.fusion.rate=0.1", "step=routing(by='quiz')", "streams.quiz.split=extra")
TWO = ("teachers.two.model=mlp(widths=(8,), classes=4)", "teachers.two.steps=1")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((*GATE, *TWO), id="a gate, which only the student's training has"),
        pytest.param(("objective.kd.term=hidden()", "roles.terms.rate=0"), id="projector"),
        pytest.param(("objective.kd.weight=0", "rate=0"), id="zeros"),
        pytest.param(("optimizer=adamw(b1=0.0, b2=0.0)",), id="means of nothing"),
        pytest.param(("distributed.coordinator=auto", "distributed.process=3"), id="numbered by the cluster"),
        pytest.param(("accumulate=4", "mesh.data=8"), id="one row a part"),
        pytest.param(("evaluate.layers=((-2, -2),)",), id="the first layer of two, counted from the end"),
    ],
)
def test_what_resembles_a_mistake_is_taken(changes, tmp_path):
    check_config(override(runs.load(), [tuple(change.split("=", 1)) for change in changes]), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model=mlp(widths=(16,), classes=7)", "has 7 classes, 4 are needed; set classes=4, or map them by"),
        (
            "classes=(-1, -1, -1, -1)",
            "(-1, -1, -1, -1): the teacher has none of the classes. Give the teacher's number",
        ),
        ("classes=(1, 0)", "(1, 0) maps 2 classes, 4 are needed. For each class of the student give its number"),
    ],
)
def test_a_teacher_of_other_classes_needs_a_whole_map(change, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxdistill.run.rules.specs.manifest.choose_step", lambda *_: 1)  # as if the checkpoint existed
    words = (f"--config.teachers.big.{change}", "--config.teachers.big.checkpoint=somewhere")
    message = refused(capsys, tmp_path / "run", *words)
    assert message.startswith(f"teachers.big.{change.split('=')[0]}: ")
    assert said in message


def test_a_mistake_inside_a_config_file_has_its_path(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from jaxdistill.config import make\ndef get_config():\n    return make(evaluate={'evry': 3})\n")
    assert refused(capsys, tmp_path / "run", source=file).startswith("evaluate.evry: unknown key 'evry'.")


def test_a_config_file_that_is_not_there_is_named(tmp_path, capsys):
    message = refused(capsys, tmp_path / "run", source=tmp_path / "none.py")
    assert message.startswith(f"--config: '{tmp_path / 'none.py'}' does not exist")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": 3}', '{"config": {"steps": "many"}}'])
def test_a_broken_config_json_is_named(text, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(text)
    message = refused(capsys, tmp_path / "run", source=file)
    assert "is not" in message


def written(folder: Path, **differences) -> Path:
    """Write a config file: the tiny run with other sections."""
    file = folder / "other.py"
    file.write_text(
        f"from jaxdistill.config import differ, load\n"
        f"def get_config():\n    return differ(load({str(runs.TINY)!r}), **{differences!r})\n"
    )
    return file


def test_no_teacher_where_one_is_needed(tmp_path, capsys):
    message = refused(capsys, tmp_path / "run", source=written(tmp_path, teachers={}))
    assert message.startswith("objective.kd: needs a teacher, and the config has none. Add teachers.NAME.model")


def test_an_empty_objective(tmp_path, capsys):
    message = refused(capsys, tmp_path / "run", source=written(tmp_path, objective={}))
    assert message.startswith("objective: has no terms. Add at least one; known losses: ")


def test_a_workdir_that_is_a_file(tmp_path, capsys):
    (tmp_path / "run").write_text("")
    message = refused(capsys, tmp_path / "run")
    assert message.startswith("--workdir: ")
    assert str(tmp_path / "run") in message
    assert "choose another" in message


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """Write a checkpoint of the tiny run's teacher, and return its run folder."""
    folder = tmp_path_factory.mktemp("teacher")
    image = {"image": jax.ShapeDtypeStruct((32, 8, 8, 1), "uint8")}
    params, state = jax.jit(lambda key: network().init(key, image))(jax.random.key(0))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        tree = {"params": {"student": params}, "state": {"student": state}}
        checkpoints.save(7, tree, {}, {"accuracy": 0.5})
    return folder


def network():
    return model("mlp(widths=(16, 16), classes=4)", "", "float32")


def test_a_checkpoint_of_another_model_names_its_arrays(teacher, tmp_path, capsys):
    other = "--config.teachers.big.model=mlp(widths=(16, 12), classes=4)"
    message = refused(capsys, tmp_path / "run", f"--config.teachers.big.checkpoint={teacher}", other)
    assert message.startswith(f"teachers.big.checkpoint: '{teacher}': the checkpoint belongs to another model: ")
    assert "params/student/layers/1/kernel is [16, 16] float32, needed [16, 12] float32" in message
    assert "Set it to the folder of a run" in message


def test_a_step_that_a_checkpoint_has_not(teacher, tmp_path, capsys):
    message = refused(capsys, tmp_path / "run", f"--config.teachers.big.checkpoint={teacher}@8")
    assert message.startswith(f"teachers.big.checkpoint: '{teacher}@8': there is no step '8' in ")
    assert "there are last, best, 7" in message


@pytest.mark.parametrize("damage", ["flipped bits", "truncated", "missing"])
def test_an_unreadable_checkpoint_is_named(damage, teacher, tmp_path, capsys):
    folder = shutil.copytree(teacher, tmp_path / "teacher")
    runs.damage(folder / "checkpoints" / "steps" / "7", damage)
    assert runs.run(tmp_path / "run", f"--config.teachers.big.checkpoint={folder}") == 4
    message = capsys.readouterr().err
    problem = f"the checkpoint of step 7 in {folder}/checkpoints is damaged"
    assert message.startswith(f"error: teachers.big.checkpoint: {problem}: ")
    assert message.endswith("; restore it from a copy, or train it again\n")


@pytest.fixture
def begun(tmp_path) -> Path:
    """Return a workdir that holds the config of the tiny run."""
    (tmp_path / "run").mkdir()
    config = runs.load().to_dict()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": config}))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("evaluate.every=3", "evaluate.every: 10 -> 3"),
        ("rate=0.1", "rate: 'cosine(start=0.01)' -> '0.1'"),
        ("teachers.small.model=mlp(widths=(4,), classes=4)", "teachers.small.model: None -> "),
    ],
)
def test_a_workdir_of_another_config(change, expected, begun, capsys):
    words = [f"--config.{change}", "--config.teachers.small.steps=1"] if "small" in change else [f"--config.{change}"]
    message = refused(capsys, begun, *words)
    assert message.startswith(f"--workdir: {str(begun)!r} belongs to another config (")
    assert expected in message
    assert f"Choose another --workdir, or resume that run with --config {begun}/config.json" in message


@pytest.mark.parametrize("change", ["steps=80", "logging.every=7", "mesh.data=8"])
def test_a_workdir_may_be_resumed_with_other_steps_logging_and_mesh(change, begun):
    words = change.partition("=")
    check_config(override(runs.load(), [(words[0], words[2])]), begun)


def test_fewer_steps_than_a_workdir_has_reached(begun, teacher, capsys):
    shutil.copytree(teacher, begun / "student")
    message = refused(capsys, begun, "--config.steps=6")
    assert message.startswith(
        f"steps: 6 steps are fewer than the 7 of the checkpoint in {begun / 'student'}. Choose another --workdir"
    )
