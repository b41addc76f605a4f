"""Tests that run every block of code in the README; commands that train are checked, and the first one runs (slow)."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import runs
from corpora import WORDS, sentences, written
from PIL import Image
from pyarrow import parquet
from rich.console import Console

import jaxdistill
from jaxdistill import main, make
from jaxdistill.core.registry import datasets
from jaxdistill.data.datasets import open_records
from jaxdistill.run import presets

TEXT = (runs.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]
PROGRAMS = ("make", "jaxdistill", ".venv/bin/jaxdistill")
PLAIN = [code for language, code in BLOCKS if not language]
SHELL = [line for code in PLAIN if code.split()[0] in PROGRAMS for line in code.splitlines()]
COMMANDS = [
    shlex.split(line, comments=True)[1:] for line in SHELL if line.removeprefix(".venv/bin/").startswith("jaxdistill ")
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make a working folder with the CSV files and the configs that the README names."""
    place = tmp_path / "here"
    place.mkdir()
    draw = np.random.default_rng(0)
    for name in ("reviews.csv", "new.csv"):
        with (place / name).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["review", "stars"])
            table.writerows([" ".join(draw.choice(WORDS[5:], 6)), ("bad", "good")[n % 2]] for n in range(40))
    (place / "configs").symlink_to(runs.ROOT / "configs")
    monkeypatch.chdir(place)
    return place


def trained(place: Path) -> None:
    model = "bert(vocabulary={vocabulary}, width=8, depth=1, heads=2, ffn=8, classes={classes})"
    config = make(
        steps=2,
        batch_size=8,
        student={"model": model},
        teachers={"minilm": {"model": model, "steps": 2}},
        objective={"kd": {}},
        data={
            "name": "table(path='reviews.csv', text='review', label='stars')",
            "tokens": sentences(written(place, WORDS), 8),
        },
        evaluate={"layers": ()},
    )
    jaxdistill.distill(config, "runs/mine", Console(quiet=True))


def test_every_block_is_known():
    """Check the number and the kinds of blocks, since a new block needs a test in this file."""
    assert len(PYTHON) == 4
    assert {tuple(command[:1]) for command in COMMANDS} == {("train",), ("predict",)}
    others = [code.split()[0] for code in PLAIN if code.split()[0] not in PROGRAMS]
    assert others == ["pip", "model"]  # `pip` is tested in test_library; the other block is the output of the demo
    assert {line.split()[0] for line in SHELL if line} == set(PROGRAMS)


def test_the_loss_of_ones_own_is_a_config(here):
    (here / "mine.py").write_text(PYTHON[0])
    with runs.registries_as_found():
        assert main.run(["train", "--config", "mine.py", "--workdir", "runs/margin", "--check"]) == 0


@pytest.mark.slow
def test_the_loss_of_ones_own_trains(here):
    (here / "mine.py").write_text(PYTHON[0])
    with runs.registries_as_found():
        assert main.run(["train", "--config", "mine.py", "--workdir", "runs/margin"]) == 0


def test_the_records_of_ones_own_are_a_data_set(tmp_path):
    with runs.registries_as_found():
        exec(compile(PYTHON[1], "README.md", "exec"), {"__name__": "readme"})
        assert "dots" in datasets
        records = open_records("dots", "test", tmp_path, "data", "test")
        assert (len(records), records.classes) == (128, 2)


def test_the_specs_of_pretrained_teachers_are_of_a_config():
    names: dict = {}
    exec(compile(PYTHON[2], "README.md", "exec"), names)
    make(teachers=names["teachers"], student=names["student"])


def test_a_trained_model_is_used(here, capsys):
    trained(here)
    exec(compile(PYTHON[3], "README.md", "exec"), {})
    assert "['" in capsys.readouterr().out
    (predict,) = (command for command in COMMANDS if command[0] == "predict")
    assert main.run(predict) == 0
    assert Path(predict[predict.index("--output") + 1]).is_file()


@pytest.mark.parametrize("command", [each for each in COMMANDS if each[0] == "train"], ids=" ".join)
def test_the_arguments_of_a_command_are_right(command, here, capsys):
    if "--help" in command:
        with pytest.raises(SystemExit, match="0"):
            main.run(command)
        return
    if "--preset" in command:  # replaces its teacher, which would be downloaded; a slow test runs it
        command = [*command, "--config.data.tokens=" + sentences(written(here, WORDS), 8)]
        model = "bert(vocabulary={vocabulary}, width=8, depth=1, heads=2, ffn=8, classes={classes})"
        command += [f"--config.student.model={model}", f"--config.teachers.minilm.model={model}"]
    if "runs/digits/config.json" in command:
        Path("runs/digits").mkdir(parents=True)
        config = jaxdistill.load_config("configs/quickstart.py")
        jaxdistill.run.workdir.write_config(Path("runs/digits"), {"config": config.to_dict(), "provenance": {}}, "")
    assert main.run([*command, "--check"]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", [each for each in COMMANDS if "--preset" in each], ids=" ".join)
def test_the_first_command_runs_as_written(command, here):
    assert main.run(command) == 0
    assert Path("runs/mine/student/hub/config.json").is_file()


OWN = re.findall(r'^\| [^|]+ \| `"(table\([^`]*\))"`', TEXT, re.M)


def write_own_files(place: Path) -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS[5:], 6)) for _ in range(40)]
    labels = [("bad", "good")[n % 2] for n in range(40)]
    (place / "data").mkdir()
    for split in ("train", "test"):
        parquet.write_table(pa.table({"body": texts, "topic": labels}), place / "data" / f"{split}.parquet")
    pairs = ({"question": text, "answer": text, "good": label} for text, label in zip(texts, labels, strict=True))
    (place / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    few = [f"{text},{label if n < 20 else ''}" for n, (text, label) in enumerate(zip(texts, labels, strict=True))]
    (place / "topics.csv").write_text("\n".join(["text,topic", *few]) + "\n")
    (place / "texts.csv").write_text("\n".join(["text", *texts]) + "\n")
    np.savez(place / "measured.npz", x=draw.normal(size=(40, 3)), y=np.arange(40) % 2)
    for name in ("cat", "dog"):
        (place / "photos" / name).mkdir(parents=True)
        for number in range(20):
            shade = np.full((40, 30, 3), 100 * (name == "dog") + number, np.uint8)
            Image.fromarray(shade).save(place / "photos" / name / f"{number}.png")


@pytest.mark.parametrize("spec", OWN)
def test_the_data_of_the_table_are_read(spec, here):
    write_own_files(here)
    assert len(OWN) == 7
    sizes = {split: len(open_records(spec, split, here / "prepared", "data", split)) for split in ("train", "test")}
    assert sum(sizes.values()) == (80 if "split" in spec else 20 if "topics" in spec else 40)


@pytest.mark.parametrize(("preset", "path"), [("image", "photos"), ("features", "measured.npz")])
def test_a_preset_is_right_for_its_data(preset, path, here, capsys):
    write_own_files(here)
    (spec,) = (each for each in OWN if path in each)
    words = ["train", "--preset", preset, f"--config.data.name={spec}", "--check"]
    assert main.run(words) == 0, capsys.readouterr().err
    assert "2 classes" in capsys.readouterr().out


def test_the_check_tells_which_records_nothing_reads(here, capsys):
    write_own_files(here)
    (spec,) = (each for each in OWN if "topics" in each)
    words = ["train", "--preset", "features", f"--config.data.name={spec}", "--check"]
    tokens = sentences(written(here, WORDS), 8)
    model = "bert(vocabulary={vocabulary}, width=8, depth=1, heads=2, ffn=8, classes={classes})"
    words += [f"--config.data.tokens={tokens}", f"--config.student.model={model}"]
    teachers = jaxdistill.load_config(presets.find("features")).teachers
    words += [f"--config.teachers.{name}.model={model}" for name in teachers]
    assert main.run([*words, "--config.batch_size=8"]) == 0, capsys.readouterr().err
    assert "unused    20 records of the split 'unlabelled'\n" in capsys.readouterr().out
