"""`jaxdistill predict`: the predictions for a file stand beside its records, in their order."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpora import sentences
from own_runs import QUIET, command, config_of
from PIL import Image
from pyarrow import parquet

import jaxdistill
from jaxdistill import differ


def test_the_command_writes_predictions_beside_the_records(home, trained, capsys):
    run, rows = trained("bert"), [json.loads(line) for line in (home / "texts.jsonl").read_text().splitlines()]
    with (home / "new.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["words", "number"])
        table.writeheader()
        table.writerows({"words": row["words"], "number": n} for n, row in enumerate(rows))
    for suffix in ("csv", "jsonl", "parquet", "npz"):
        assert command("predict", run, "--input", home / "new.csv", "--output", home / f"out.{suffix}") == 0
    assert "120 records in " in capsys.readouterr().out
    with (home / "out.csv").open() as file:
        written_rows = list(csv.DictReader(file))
    expected = jaxdistill.load(run).predict([row["words"] for row in rows])
    assert [row["prediction"] for row in written_rows] == expected.labels
    assert [row["number"] for row in written_rows] == [str(n) for n in range(120)]
    lines = [json.loads(line) for line in (home / "out.jsonl").read_text().splitlines()]
    assert [line["probabilities"] for line in lines] == expected.probabilities.tolist()
    assert parquet.read_table(home / "out.parquet")["prediction"].to_pylist() == expected.labels
    with np.load(home / "out.npz") as arrays:
        assert arrays["confidence"].tolist() == expected.confidence.tolist()
    parquet.write_table(pa.table({"body": ["a b"]}), home / "other.parquet")
    assert command("predict", run, "--input", home / "other.parquet", "--output", home / "o.csv", "--text", "body") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--input", "none.csv", "--output", "o.csv"), "error: --input: "),
        (("--input", "{home}/texts.jsonl", "--output", "o.doc"), "'o.doc' has an unknown format. Use one of .csv"),
        (("--input", "{home}/texts.jsonl", "--output", "o.csv", "--text", "word"), "Did you mean 'words'?"),
        (("--input", "{home}/texts.jsonl", "--output", "o.csv", "--model", "big"), "there is no 'big'"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(words, said, home, trained, tmp_path, monkeypatch, capsys):
    run = trained("bert")
    monkeypatch.chdir(tmp_path)
    assert command("predict", run, *(word.format(home=home) for word in words)) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_pictures_without_classes_is_predicted(home, trained):
    folder = home / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(folder / f"{number}.png")
    run = trained("mlp")
    assert command("predict", run, "--input", folder, "--output", home / "pictures.csv", "--image", "image") == 0
    with (home / "pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    grey = [np.full((8, 8, 1), 60 * number, np.uint8) for number in range(3)]
    assert [row["prediction"] for row in rows] == jaxdistill.load(run).predict(grey).labels


def test_files_of_many_chunks_keep_their_order_and_columns(home, trained, monkeypatch, capsys):
    run = trained("bert")
    rows = [{"words": " ".join("abcdefg"[(n * k) % 7] for k in range(1, 5)), "n": n} for n in range(50)]
    rows[40]["n"] = [1, 2]  # in a later chunk
    (home / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("jaxdistill.data.table.files.ROWS", 8)
    for suffix in ("csv", "jsonl"):
        assert command("predict", run, "--input", home / "many.jsonl", "--output", home / f"many-out.{suffix}") == 0
    assert command("predict", run, "--input", home / "many.jsonl", "--output", home / "many.jsonl") == 2
    expected = jaxdistill.load(run).predict([row["words"] for row in rows]).labels
    with (home / "many-out.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["prediction"] for row in found] == expected and found[40]["n"] == "[1, 2]"
    assert [row["words"] for row in found] == [row["words"] for row in rows]
    (home / "many.jsonl").write_text(
        "".join(json.dumps({"words": row["words"] if row["n"] != 30 else 3}) + "\n" for row in rows)
    )
    assert command("predict", run, "--input", home / "many.jsonl", "--output", home / "none.csv") == 2
    assert "record 30: 'words' is 3, not a text" in capsys.readouterr().err
    assert not (home / "none.csv").exists()


def test_a_pair_of_texts_is_read_from_columns_of_other_names(home):
    pairs = [{"q": "a b", "r": "c", "y": n % 2} for n in range(20)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (home / "other.jsonl").write_text("".join(json.dumps({"x": row["q"], "y": row["r"]}) + "\n" for row in pairs))
    name = f"table(path='{home}/pairs.jsonl', text=('q', 'r'), label='y')"
    config = differ(
        config_of("bert", home, teachers={}, objective={"cross_entropy": {}}),
        data={"name": name, "tokens": sentences(home, 8, ", fields=('q', 'r')")},
    )
    jaxdistill.distill(config, home / "pairs", QUIET)
    found = jaxdistill.load(home / "pairs").predict([{"q": "a b", "r": "c"}])
    words = ("predict", home / "pairs", "--input", home / "other.jsonl", "--output", home / "pairs.csv")
    assert command(*words, "--text", "x,y") == 0
    with (home / "pairs.csv").open() as file:
        assert next(csv.DictReader(file))["prediction"] == found.labels[0]
