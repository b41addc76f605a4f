"""A mistake is one message with path, value and cure, before anything compiles or a file is written; exit code 2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import runs

from jaxdistill.core.checkpoint import Checkpoints
from jaxdistill.models.build import build_model as model
from jaxdistill.run.config import override
from jaxdistill.run.distill import check

# what is wrong: (changes of the tiny run, the path that is named, what the message says: the value, the cure)
MISTAKES = {
    "an unknown key": (["stepss=3"], "stepss", "'stepss'", "Did you mean 'steps'?"),
    "an unknown key of a section": (["evaluate.everyy=3"], "evaluate.everyy", "'everyy'", "Did you mean 'every'?"),
    "an unknown key of an entry": (["teachers.big.modl=mlp()"], "teachers.big.modl", "'modl'", "Did you mean 'model'?"),
    "an unknown section": (["evalute.every=3"], "evalute", "'evalute'", "Did you mean 'evaluate'?"),
    "a section as a value": (["objective=kd"], "objective", "'objective' is a section", "--config.objective.KEY=VALUE"),
    "a value as a section": (["steps.kd=3"], "steps", "'steps' is a key", "--config.steps=VALUE"),
    "unknown bits": (["teachers.big.quantized=int4"], "teachers.big.quantized", "'int4'", "'int8' or 'fp8'"),
    "an unknown term": (["objective.kdd.weight=1"], "objective.kdd", "unknown loss 'kdd'", "Did you mean 'kd'?"),
    "an unknown model": (["student.model=mpl(classes=4)"], "student.model", "'mpl'", "Did you mean 'mlp'?"),
    "an unknown fusion": (["fusion=avrage()"], "fusion", "'avrage'", "Did you mean 'average'?"),
    "an unknown step": (["step=ofline()"], "step", "'ofline'", "Did you mean 'offline'?"),
    "an unknown optimizer": (["optimizer=adam()"], "optimizer", "'adam'", "Did you mean 'adamw'?"),
    "an unknown schedule": (["rate=cosin(start=1)"], "rate", "'cosin'", "Did you mean 'cosine'?"),
    "an unknown transform": (["data.augment=('shft(pixels=1)',)"], "data.augment", "'shft'", "Did you mean 'shift'?"),
    "an unknown selection": (["data.select=radom(share=0.1)"], "data.select", "'radom'", "Did you mean 'random'?"),
    "a share of nothing": (
        ["data.select=random(share=0.0)"],
        "data.select",
        "got 0.0",
        "share must be above 0 and at most 1",
    ),
    "a selection by nobody": (
        ["data.select=hardest(share=0.1, cache='nowhere')"],
        "data.select",
        "nowhere/train holds no store",
        "Write it: jaxdistill cache",
    ),
    "hard rows of nobody": (
        ["objective.kd.term=hard(loss=kd(), by='disagreement')"],
        "objective.kd",
        "there are 1",
        "needs two teachers or more",
    ),
    "a term that a step cannot weigh": (["step=mgda(terms=('kdd',))"], "step", "no term 'kdd'", "it has kd, cross_ent"),
    "a layer that a step cannot look at": (["step=gradnorm(layer='hed')"], "step", "layer='hed'", "head/kernel"),
    "a quiz that nobody gives": (
        ["step=meta()"],
        "streams",
        "'meta()' reads the stream 'quiz'",
        "add streams.quiz.split",
    ),
    "a quiz on what was learned": (
        ["step=meta()", "streams.quiz.split=train"],
        "streams.quiz.split",
        "'train' shares records with data.train='train'",
        "streams.quiz.split='train[90%:]'",
    ),
    "a quiz on what is judged": (
        ["step=pseudo_labels()", "streams.quiz.split=test"],
        "streams.quiz.split",
        "'test' shares records with data.test='test'",
        "Choose other records",
    ),
    "a stream of nothing": (
        ["step=tuned_teacher()", "streams.quiz.split="],
        "streams.quiz.split",
        "'blobs' has no split ''",
        "(KeyError: '')",
    ),
    "inner steps that do not divide the batch": (
        ["step=meta(inner_steps=5)", "streams.quiz.split=extra"],
        "step",
        "inner_steps=5",
        "does not divide a batch of 32 rows",
    ),
    "nothing that learns": (["step=meta(learns=())"], "step", "got learns=()", "learns must not be empty"),
    "an unknown role": (["roles.term.rate=0.1"], "roles.term", "'term'", "Did you mean 'terms'?"),
    "a misspelt argument": (
        ["objective.kd.term=kd(temprature=2)"],
        "objective.kd",
        "'temprature'",
        "Did you mean 'temperature'?",
    ),
    "a missing argument": (["student.model=mlp(classes=4)"], "student.model", "mlp(widths: ", "argument: 'widths'"),
    "text for a number": (["steps=many"], "steps", "'many'", "a whole number, 1 or more"),
    "a fraction for a count": (["batch_size=1.5"], "batch_size", "1.5", "a whole number, 1 or more"),
    "a negative count": (["seed=-1"], "seed", "-1", "a whole number, 0 or more"),
    "text for a flag": (["control=maybe"], "control", "'maybe'", "True or False"),
    "an unknown dtype": (["dtype=float8"], "dtype", "'float8'", "'bfloat16'"),
    "a number for a tuple": (["student.model=mlp(widths=8, classes=4)"], "student.model", "widths=8", "tuple[int"),
    "text for a temperature": (["objective.kd.term=kd(temperature='hot')"], "objective.kd", "'hot'", "Known: constant"),
    "one layer for pairs": (["evaluate.layers=3"], "evaluate.layers", "3", "pairs of layers such as"),
    "a rule for no axis": (["student.rules=(('kernel', ('fdsp',)),)"], "student.rules", "'fdsp'", "data, fsdp, tensor"),
    "a negative temperature": (
        ["objective.kd.term=kd(temperature=-1)"],
        "objective.kd",
        "it reaches -1",
        "temperature must stay above 0",
    ),
    "a temperature that turns negative": (
        ["objective.kd.term=kd(temperature=linear(start=4, end=-2))"],
        "objective.kd",
        "it reaches -2",
        "temperature must stay above 0",
    ),
    "a layer that does not exist": (
        ["objective.kd.term=hidden(layers=((5, 1),))"],
        "objective.kd",
        "the student has no layer 5",
        "it has layers 0 (the embedding) to 1",
    ),
    "a teacher's layer that does not exist": (
        ["objective.kd.term=hidden(layers=((1, 7),))"],
        "objective.kd",
        "the teacher has no layer 7",
        "it has layers 0 (the embedding) to 1",
    ),
    "a layer to evaluate that does not exist": (
        ["evaluate.layers=((9, 1),)"],
        "evaluate.layers",
        "the student has no layer 9",
        "it has layers 0 (the embedding) to 1",
    ),
    "unlike widths without a projector": (
        ["objective.kd.term=hidden(projector='none')"],
        "objective.kd",
        "student 8, teacher 16",
        "use projector='linear'",
    ),
    "a teacher that does not exist": (
        ["objective.kd.term=hidden(teacher=4)"],
        "objective.kd",
        "there is no teacher 4",
        "the config has 1, numbered from 0",
    ),
    "the wrong number of classes": (
        ["student.model=mlp(widths=(8, 8), classes=3)"],
        "student.model",
        "'mlp(widths=(8, 8), classes=3)' has 3 classes",
        "set classes=4",
    ),
    "a teacher's wrong number of classes": (
        ["teachers.big.model=mlp(widths=(16,), classes=7)"],
        "teachers.big.model",
        "has 7 classes",
        "set classes=4",
    ),
    "a peer with other classes": (
        ["step=mutual()", "teachers.big.steps=0", "teachers.big.model=mlp(widths=(16,), classes=7)"],
        "teachers.big.model",
        "has 7 classes",
        "set classes=4",
    ),
    "a map for a peer": (
        ["step=mutual()", "teachers.big.steps=0", "teachers.big.classes=(1, 0, 3, 2)"],
        "teachers.big.classes",
        "'mutual()' trains teachers",
        "Leave it out",
    ),
    "a frozen teacher without a checkpoint beside an average": (
        ["step=averaged(teacher=1)", "teachers.big.steps=0", "teachers.mean.model=mlp(widths=(8, 8), classes=4)"],
        "teachers.big",
        "neither a checkpoint nor steps",
        "teachers.big.checkpoint",
    ),
    "a buffer that holds nothing": (["step=replay(size=0)"], "step", "size must be at least 1", "got 0"),
    "a task of nothing": (
        ["data.order=tasks(groups=((0, 1), ()), steps=5)"],
        "data.order",
        "((0, 1), ())",
        "every task",
    ),
    "a task of a class that is not there": (
        ["data.order=tasks(groups=((0, 1), (7,)), steps=5)"],
        "data.order",
        "no record has the class 7",
        "there are 4, from 0",
    ),
    "tasks by a field that is not there": (
        ["data.order=tasks(groups=((0,), (1,)), steps=5, field='domain')"],
        "data.order",
        "no integer field 'domain'",
        "Choose one of label",
    ),
    "an average of another network": (
        ["step=averaged()", "teachers.big.steps=0"],
        "step",
        "must have the student's model",
        "set its model to student.model",
    ),
    "a map for a teacher that learns the data's classes": (
        ["teachers.big.classes=(1, 0, 3, 2)"],
        "teachers.big.classes",
        "this run trains the teacher",
        "Leave it out",
    ),
    "a share above 1": (
        ["student.model=mlp(widths=(8, 8), classes=4, dropout=1.5)"],
        "student.model",
        "got 1.5",
        "dropout must be at least 0 and below 1",
    ),
    "no model": (["student.model="], "student.model", "no model is set", "Known: bert, "),
    "a batch that does not divide by the mesh": (
        ["mesh.data=8", "batch_size=36"],
        "batch_size",
        "36 rows are not divisible by 8",
        "choose a multiple of 8",
    ),
    "an evaluation batch that does not": (
        ["mesh.data=4", "mesh.fsdp=2", "evaluate.batch_size=30"],
        "evaluate.batch_size",
        "30 rows are not divisible by 8",
        "choose a multiple of 8",
    ),
    "pieces that do not divide the batch": (["accumulate=5"], "batch_size", "32 rows", "choose a multiple of 5"),
    "more devices than there are": (["mesh.data=16"], "mesh", "needs 16 devices, there are 8", "lower a size"),
    "a sub-mesh that leaves no device": (
        ["teachers.big.placement=submesh(devices=8)"],
        "teachers.big.placement",
        "8 of 8 free devices leave none for the student",
        "Lower devices",
    ),
    "a sub-mesh beside which the mesh has no room": (
        ["teachers.big.placement=submesh(devices=4)", "mesh.data=8"],
        "mesh",
        "needs 8 devices, there are 4",
        "4 of 8 are reserved for teachers",
    ),
    "a sub-mesh over which rows do not divide": (
        ["teachers.big.placement=submesh(devices=3)"],
        "batch_size",
        "32 rows are not divisible by 3 (teachers.big.placement)",
        "choose a multiple of 3",
    ),
    "a sub-mesh of nothing": (
        ["teachers.big.placement=submesh(devices=0)"],
        "teachers.big.placement",
        "devices=0",
        "set devices to at least 1",
    ),
    "a sub-mesh under pmap": (
        ["teachers.big.placement=submesh(devices=1)", "mesh.backend=pmap"],
        "teachers.big.placement",
        "with pmap in 1 process(es)",
        "set mesh.backend='jit'",
    ),
    "a sub-mesh for what is read": (
        ["teachers.big.placement=submesh(devices=1)", "teachers.big.cache=outputs(folder='x')"],
        "teachers.big.placement",
        "by teachers.big.cache",
        "Leave one of the two out",
    ),
    "a sub-mesh for a peer": (
        ["teachers.big.placement=submesh(devices=1)", "step=mutual()"],
        "teachers.big.placement",
        "'mutual()' trains teachers",
        "Leave it out",
    ),
    "a sub-mesh for the only teacher that learns": (
        ["teachers.big.placement=submesh(devices=1)", "step=tuned_teacher()", "streams.quiz.split=extra"],
        "step",
        "no teacher has parameters to train",
        "neither cached nor on a sub-mesh",
    ),
    "a sub-mesh for one of those that learn": (
        [
            "teachers.big.placement=submesh(devices=1)",
            "teachers.two.model=mlp(widths=(8, 8), classes=4)",
            "teachers.two.steps=1",
            "fusion=average()",
            "step=tuned_teacher()",
            "streams.quiz.split=extra",
        ],
        "teachers.big.placement",
        "'tuned_teacher()' trains teachers",
        "Leave it out",
    ),
    "a layer that a sub-mesh does not send": (
        ["teachers.big.placement=submesh(devices=1, layers=(0,))", "objective.kd.term=hidden(layers='last')"],
        "objective.kd",
        "the teacher's outputs lack layers [1]",
        "its cache or placement lists [0]",
    ),
    "a layer that a teacher apart has not": (
        ["teachers.big.placement=submesh(devices=1, layers=(2,))"],
        "teachers.big.placement",
        "the teacher has no layer 2",
        "it has layers 0 (the embedding) to 1",
    ),
    "a gradient that a sub-mesh does not send": (
        ["teachers.big.placement=submesh(devices=1)", "objective.jacobian.weight=1"],
        "objective.jacobian",
        "a teacher on a sub-mesh has none",
        "Remove teachers.big.placement",
    ),
    "a mesh that pmap has not": (["mesh.backend=pmap", "mesh.fsdp=2"], "mesh", "pmap", "set fsdp=1 and tensor=1"),
    "a missing data set": (["data.name=mnist5"], "data.name", "unknown data set 'mnist5'", "Did you mean 'mnist5k'?"),
    "a data set that nobody has": (
        ["data.name=nonesuch"],
        "data.name",
        "'nonesuch'",
        "Known: blobs, clothes, emoji",
    ),
    "an unknown split": (["data.test=tset"], "data.test", "'blobs' has no split 'tset'", "(KeyError: 'tset')"),
    "a checkpoint that is not there": (
        ["teachers.big.checkpoint=/no/run@best"],
        "teachers.big.checkpoint",
        "there is no finished checkpoint in /no/run/checkpoints",
        "Set it to the folder of a run",
    ),
    "neither a checkpoint nor steps": (
        ["teachers.big.steps=0"],
        "teachers.big",
        "has neither a checkpoint nor steps",
        "Set teachers.big.checkpoint to the folder of a run, or teachers.big.steps",
    ),
    "a task that needs a teacher": (["task.kd.weight=1"], "task.kd", "needs a teacher", "Add teachers.NAME.model"),
    "a spec string that runs code": (
        ["objective.kd.term=__import__('os').system('touch pwned')"],
        "objective.kd",
        "touch pwned",
        "Write a registered name with literal arguments",
    ),
    "a spec string that runs code in an argument": (
        ["student.model=mlp(widths=open('pwned', 'w'), classes=4)"],
        "student.model",
        "open",
        "expected tuple[int",
    ),
    "a literal that cannot be": (["steps={[]: 1}"], "steps", "'{[]: 1}'", "a whole number, 1 or more"),
    "a seed beyond its range": (["seed=99999999999999999999"], "seed", "99999999999999999999", "below 2^31"),
    "an infinite norm": (["clip_norm=1e999"], "clip_norm", "inf", "a finite number"),
    "a curve beyond all numbers": (
        ["rate=step(start=1.0, factor=2.0, every=1e-9)"],
        "rate",
        "this schedule cannot be computed",
        "over 40 steps",
    ),
    "a rule that splits two dimensions along one axis": (
        ["student.rules=(('kernel$', ('fsdp', 'fsdp')),)"],
        "student.rules",
        "('fsdp', 'fsdp')",
        "an axis being data, fsdp, tensor or None",
    ),
    "a coordinator without a port": (
        ["distributed.coordinator=localhost"],
        "distributed.coordinator",
        "localhost",
        "node0:1234",
    ),
    "processes that nobody leads": (["distributed.processes=2"], "distributed.processes", "2 processes", "host:port"),
    "a stream that nothing reads": (["streams.spare.split=train"], "streams.spare", "nothing reads it", "leave it out"),
    "pieces of a head that is multiplied out": (["chunks=2"], "chunks", "2 chunks", "leave chunks at 1"),
    "a rate that climbs": (["rate=-0.1"], "rate", "-0.1", "a learning rate is 0 or more"),
    "a name that is no name": (
        ["teachers.3rd.model=mlp()"],
        "teachers",
        "'3rd' is not a valid entry name",
        "with a letter or _ first",
    ),
    "a spec string that runs code without a call": (
        ["student.model=mlp(widths=[open('pwned', 'w') for _ in (1,)], classes=4)"],
        "student.model",
        "open('pwned', 'w') for _ in (1,)",
        "Write a registered name with literal arguments",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    with runs.registries_as_found(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXDISTILL_DATA", str(tmp_path_factory.mktemp("data")))  # what is known depends on what is there
        yield


def refused(capsys, workdir: Path, *words: str, source: Path = runs.TINY) -> str:
    """The message of a run that must be refused, which compiles nothing and leaves the workdir as it was."""
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


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_with_path_value_and_cure(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changes, path, value, cure = MISTAKES[mistake]
    message = refused(capsys, tmp_path / "run", *(f"--config.{change}" for change in changes))
    assert message.startswith(f"{path}: ")
    assert value in message
    assert cure in message
    assert list(tmp_path.iterdir()) == []  # no workdir, and nobody touched `pwned`


@pytest.mark.parametrize("word", ["--config.steps", "steps=3", "--steps=3", "--verbose"])
def test_a_word_that_is_no_change_is_shown_how_changes_are_written(word, tmp_path, capsys):
    message = refused(capsys, tmp_path / "run", word)
    assert message.startswith(f"{word}: unknown argument")
    assert "--config.a.b=value" in message


# what is wrong with a config file: (its text, what the message says)
FILES = {
    "no get_config": ("steps = 3\n", "has no function get_config()"),
    "get_config of something else": ("def get_config():\n    return {'steps': 3}\n", "returned dict; return make(...)"),
    "a syntax error": ("def get_config():\n    return make(steps=\n", "fails in line 2 (SyntaxError"),
    "an import that fails": ("import nonesuch\n", "fails in line 1 (ModuleNotFoundError: No module named 'nonesuch')"),
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


def test_a_line_is_found_in_a_file_that_is_named_from_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("\ndef get_config():\n    return [][1]\n")
    assert "'mine.py' fails in line 3 (IndexError" in refused(capsys, Path("run"), source=Path("mine.py"))


@pytest.mark.parametrize(
    "change", ["objective.kd.term=kdd", "rate=fast", "fusion=avrage", "step=online()", "teachers.big.checkpoint=gone"]
)
def test_names_are_judged_before_any_data_are_made(change, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxdistill.data.pipeline.describe", lambda *_: pytest.fail("data were looked at"))
    assert refused(capsys, tmp_path / "run", f"--config.{change}").startswith(
        change.split("=")[0].removesuffix(".term")
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model=mlp(widths=(16,), classes=7)", "has 7 classes, 4 are needed; set classes=4, or map them by"),
        ("classes=(1, 0)", "(1, 0) maps 2 classes, 4 are needed. For each class of the student give its number"),
    ],
)
def test_a_teacher_of_other_classes_needs_a_whole_map(change, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxdistill.run.rules.specs.checkpoint.choose_step", lambda *_: 1)  # as if it were there
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
    """A config file: the tiny run with other sections."""
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
    """The folder of a run that trained the tiny run's teacher."""
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


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "missing"])
def test_an_unreadable_checkpoint_names_the_file(damage, teacher, tmp_path, capsys):
    folder = shutil.copytree(teacher, tmp_path / "teacher")
    file = runs.damage(folder / "checkpoints" / "steps" / "7", damage)
    message = refused(capsys, tmp_path / "run", f"--config.teachers.big.checkpoint={folder}")
    assert message.startswith(f"teachers.big.checkpoint: '{folder}': the checkpoint of step 7 is damaged: {file} ")
    assert "Set it to the folder of a run" in message


@pytest.fixture
def begun(tmp_path) -> Path:
    """A workdir that belongs to the tiny run."""
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
    check(override(runs.load(), [(words[0], words[2])]), begun)


def test_fewer_steps_than_a_workdir_has_reached(begun, teacher, capsys):
    shutil.copytree(teacher, begun / "student")
    message = refused(capsys, begun, "--config.steps=6")
    assert message.startswith(
        f"steps: 6 steps are fewer than the 7 of the checkpoint in {begun / 'student'}. Choose another --workdir"
    )


@pytest.mark.parametrize("mistake", ["an unknown key", "an unknown term", "a layer that does not exist"])
def test_a_process_of_its_own_says_the_same(mistake, tmp_path):
    changes, path, value, cure = MISTAKES[mistake]
    process = runs.spawn(tmp_path / "run", *(f"--config.{change}" for change in changes))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"error: {path}: ")
    assert err.count("\n") == 1
    assert value in err
    assert cure in err
    assert not (tmp_path / "run").exists()


def test_a_mistake_of_the_schema_imports_no_jax():
    """Three seconds are easily kept where JAX is not even imported."""
    code = f"""
import sys
from jaxdistill.main import run
assert run(["--config", {str(runs.TINY)!r}, "--workdir", "none", "--config.stepss=3"]) == 2
sys.exit(int("jax" in sys.modules))
"""
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
