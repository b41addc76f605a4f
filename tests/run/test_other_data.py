"""Tests of prepared files, teachers and folders that belong to other data: they are made again or refused."""

import contextlib
import json
import shutil
import sys

import numpy as np
import pytest
from corpora import sentences
from own_runs import QUIET, config_of

import jaxdistill
from jaxdistill import differ, main
from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.data.datasets import open_records
from jaxdistill.data.text import synthesis
from jaxdistill.run.distill import check_config
from jaxdistill.run.fill import fill_placeholders
from jaxdistill.run.output_checks import check_no_other_folders, check_output
from jaxdistill.run.study import finished_results

MODEL = {"model": "mlp(widths=(4,), classes=2)", "steps": 1}


def write_rows(file, names=("no", "yes"), order="ab"):
    draw = np.random.default_rng(0)
    rows = [f"{draw.normal():.3f},{draw.normal():.3f},{names[n % 2]}" for n in range(40)]
    file.write_text("\n".join([",".join([*order, "y"]), *rows]) + "\n")
    return file


def swap(one, other):
    for a, b in ((one, one.with_suffix(".kept")), (other, one), (one.with_suffix(".kept"), other)):
        a.rename(b)


def table(file, columns="'a', 'b'"):
    return f"table(path={str(file)!r}, features=({columns}), label='y', test=0.25)"


def test_swapped_tables_are_read_again(tmp_path, capsys):
    files = [write_rows(tmp_path / "one.csv"), write_rows(tmp_path / "two.csv", ("maybe", "surely"))]
    opened = [open_records(table(file), "train", tmp_path / "data", "data", "train") for file in files]
    swap(*sorted((tmp_path / "data" / "tables").iterdir()))
    again = [open_records(table(file), "train", tmp_path / "data", "data", "train") for file in files]
    assert [each.class_names for each in again] == [each.class_names for each in opened]
    assert capsys.readouterr().err.count("holds the records of other files; reading") == 2


def test_swapped_tokens_are_made_again(home, tmp_path, capsys):
    place = tmp_path / "data"
    opened = lambda length: open_records(
        f"table(path='{home}/texts.jsonl', text='words', label='kind', test=0.25)",
        *("train", place, "data", "train"),
        sentences(home, length),
    )
    first = {length: opened(length).take(np.arange(5))["input_ids"] for length in (6, 8)}
    swap(*sorted((place / "tokens").iterdir()))
    for length, ids in first.items():
        np.testing.assert_array_equal(opened(length).take(np.arange(5))["input_ids"], ids)
    assert capsys.readouterr().err.count("holds other tokens (spec differs); tokenising the texts again") == 2


def test_a_part_of_another_generated_set_is_made_again(tmp_path):
    for name in ("one", "two"):
        synthesis.write_generation_settings(tmp_path / name, {"rows": 2, "part": 1, "teacher": name})
        for number in range(2):
            synthesis.write_part(tmp_path / name, number, [{"text": f"{name} {number}"}])
    assert synthesis.missing_parts(tmp_path / "one", 2, 1) == []
    for suffix in ("jsonl", "json"):
        shutil.copy(tmp_path / "two" / f"00001.{suffix}", tmp_path / "one")
    assert [number for number, _ in synthesis.missing_parts(tmp_path / "one", 2, 1)] == [1]


@pytest.fixture(scope="module")
def teacher(home, tmp_path_factory):
    """Return folder and config of a run on the columns a and b, with the classes no and yes."""
    place = tmp_path_factory.mktemp("teacher")
    config = differ(config_of("mlp", home), data={"name": table(write_rows(place / "f.csv"))}, steps=1)
    config = differ(config, student={"model": MODEL["model"]}, teachers={"big": MODEL})
    jaxdistill.distill(config, place / "run", QUIET)
    return place, config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": "'b', 'a'"}, "trained on the columns a, b, and the data have b, a"),
        ({"names": ("aaa", "no")}, "trained on the classes no, yes, and the data have aaa, no. Give the teacher's"),
    ],
)
def test_a_teacher_of_other_columns_or_classes_is_refused(teacher, tmp_path, changes, said):
    place, config = teacher
    file = write_rows(tmp_path / "f.csv", changes.get("names", ("no", "yes")))
    known = {"big": {**MODEL, "steps": 0, "checkpoint": str(place / "run" / "teachers" / "big")}}
    other = differ(config, teachers=known, data={"name": table(file, changes.get("columns", "'a', 'b'"))})
    with pytest.raises(ConfigError, match=rf"^teachers\.big\.checkpoint: it was {said}"):
        check_config(other, None)
    if "names" in changes:  # a map of classes says which is which
        check_config(differ(other, teachers={"big": {**known["big"], "classes": (1, 0)}}), None)
    check_config(differ(config, teachers=known), None)


def test_a_study_starts_from_a_preset(teacher, tmp_path, monkeypatch, capsys):
    place, _ = teacher
    monkeypatch.setattr(sys, "argv", ["jaxdistill"])
    monkeypatch.setenv("JAXDISTILL_DATA", str(tmp_path / "data"))
    words = ["sweep", "--preset", "features", f"--config.data.name={table(place / 'f.csv')}", "--seeds", "1"]
    words += ["--axis", "rate", "0.1", "fast", "--workdir", str(tmp_path / "study")]
    assert main.run(words) == 2
    assert "error: rate: unknown schedule 'fast'" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()  # all arms are judged before any data are prepared


@pytest.mark.parametrize(
    ("value", "said"), [("1_000", "is '1_000', not a finite number"), ("1e39", "not a finite number")]
)
def test_a_number_with_underscores_is_no_number(tmp_path, value, said):
    file = write_rows(tmp_path / "f.csv")
    file.write_text(file.read_text().replace("\n", f"\n{value},1,no\n", 1))
    with pytest.raises(ConfigError, match=said):
        open_records(table(file), "train", tmp_path / "data", "data", "train")


def test_complex_numbers_and_dates_are_no_numbers(tmp_path):
    for kind in ("complex64", "datetime64[D]"):
        np.savez(tmp_path / "f.npz", x=np.ones((40, 3)).astype(kind), y=np.arange(40) % 2)
        with pytest.raises(ConfigError, match="not a finite number"):
            name = f"table(path={str(tmp_path / 'f.npz')!r}, features=('x',), label='y', test=0.25)"
            open_records(name, "train", tmp_path / "data", "data", "train")


@pytest.mark.parametrize("names", [("caf\u00e9", "cafe\u0301"), ("no", "no\u200b"), ("Yes", "yes")])
def test_labels_that_look_alike_are_told(tmp_path, names, capsys):
    open_records(table(write_rows(tmp_path / "f.csv", names)), "train", tmp_path / "data", "data", "train")
    assert "look alike, and are two classes; check the spelling" in capsys.readouterr().err


def test_a_plan_does_not_overwrite_a_table(teacher, capsys):
    place, _ = teacher
    whole = (place / "f.csv").read_text()
    data = f"--config.data.name={table(place / 'f.csv')}"
    words = ["plan", "--preset", "features", data, "--topology", "cpu:1", "--json", str(place / "f.csv")]
    assert main.run(words) == 2 and (place / "f.csv").read_text() == whole
    assert "exists. Choose another file, or replace it with --overwrite." in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "cache"])
def test_folders_of_other_things_are_left_alone(command, teacher, capsys):
    """Check that a folder that holds images or other runs is refused as the place of a run or a cache."""
    place, _ = teacher
    (place / "pets/cat").mkdir(parents=True, exist_ok=True)
    (place / "pets/cat/1.png").touch()
    data = f"--config.data.name={table(place / 'f.csv')}"
    for folder in (place / "pets", place):
        words = [command, "--preset", "features", data]
        words += ["--workdir", str(folder)] if command == "train" else []
        words += [f"--config.teachers.wide.cache=outputs(folder={str(folder)!r})"] if command == "cache" else []
        before = sorted(folder.rglob("*"))
        assert main.run(words) == 2 and sorted(folder.rglob("*")) == before
        said = capsys.readouterr().err
        assert "holds other folders with files (" in said and "Choose a new or empty folder" in said, said


def test_a_column_that_is_named_twice_is_refused(teacher, tmp_path, capsys):
    place, _ = teacher
    words = ["--input", str(place / "f.csv"), "--output", str(tmp_path / "o.csv"), "--features", "a,a"]
    assert main.run(["predict", str(place / "run"), *words]) == 2
    assert "the column 'a' is named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"async def get_config():\n    return 1\n", "returned coroutine; return make"),
        ("x = 1\n".encode("utf-16"), "has zero bytes, as no Python file has. Save it as UTF-8"),
        (b"import jaxdistill\n\n\ndef get_config():\n    return jaxdistill.make(steps=None)\n", "steps: None is not"),
    ],
)
def test_a_wrong_config_file_is_one_line(tmp_path, content, said, capsys):
    (tmp_path / "c.py").write_bytes(content)
    assert main.run(["train", "--config", str(tmp_path / "c.py"), "--check"]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1, message


def test_a_graph_file_holds_whole_numbers(tmp_path):
    from jaxdistill.losses.relations.edges import parse_edges, read_graph

    for edges in ([[0.7, 1.2, 1]], [["0", 1, 1]], [[float("inf"), 1, 1]], [[True, 1, 1]]):
        (tmp_path / "g.json").write_text(json.dumps({"names": ["a", "b"], "edges": edges}))
        with pytest.raises(ValueError, match="is not a graph file"):
            read_graph(tmp_path / "g.json")
    (tmp_path / "g.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not a graph file"):
        read_graph(tmp_path / "g.json")
    for edge in ((0, float("inf")), (0, 1, float("inf")), (0, 1, float("nan"))):
        with pytest.raises(ValueError, match="is not an edge"):
            parse_edges((edge,))


def test_a_folder_of_other_things_is_found_at_any_depth(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    check_no_other_folders(tmp_path, "--workdir")
    (tmp_path / "x" / "y" / "file").touch()
    with pytest.raises(
        ConfigError, match=r"^--workdir: .* holds other folders with files \(x\)\. Choose a new or empty"
    ):
        check_no_other_folders(tmp_path, "--workdir")


def test_a_link_to_a_file_that_does_not_exist_is_not_overwritten(tmp_path):
    (tmp_path / "out.csv").symlink_to("nothing.csv")
    with pytest.raises(ConfigError, match=r"^--output: .*out\.csv' exists\. Choose another file"):
        check_output(tmp_path / "out.csv", "--output", overwrite=False)
    check_output(tmp_path / "out.csv", "--output", overwrite=True)


def test_results_of_another_run_of_the_same_config_are_not_taken(home, tmp_path):
    config = fill_placeholders(config_of("mlp", home))
    written = {"config": config.to_dict(), "rows": [], "seconds": {}, "provenance": {}, "log": {"student": {"loss": 1}}}
    for run, taken in (("a", True), ("b", False)):
        seal.write(tmp_path / "config.json", {"config": config.to_dict(), "run": "a"})
        seal.write(tmp_path / "results.json", {**written, "run": run})
        assert (finished_results(config, tmp_path) is not None) == taken


class Named(list):
    """Records whose labels have names."""

    def __init__(self, names):
        super().__init__({"image": np.full(2, n, np.float32), "label": n % 2} for n in range(8))
        self.class_names = names


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (("no", "yes"), ("yes", "no"), "a class is 'no' in 'train', and 'yes' in 'test'; give both splits the same"),
        (("no", "yes", "perhaps"), ("no", "never"), "a class is 'yes' in 'train', and 'never' in 'test'"),
        (("no", "yes"), ("no", "yes", "perhaps"), "the records of 'train' have 2 classes, those of 'test' have 3"),
        (("no", "yes", "perhaps"), ("no", "yes"), ""),
    ],
)
def test_both_splits_have_the_same_classes(home, train, test, said):
    def classes_by_split(split, folder):
        return Named({"train": train, "test": test}[split])

    datasets.register(classes_by_split)
    network = {"model": f"mlp(widths=(4,), classes={len(train)})"}
    teachers = {"big": {**network, "steps": 1}}
    config = config_of("mlp", home, data={"name": "classes_by_split"}, student=network, teachers=teachers)
    with pytest.raises(ConfigError, match=rf"^data\.test: {said}") if said else contextlib.nullcontext():
        check_config(config, None)
