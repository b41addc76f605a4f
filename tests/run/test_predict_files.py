"""Tests of `jaxdistill predict`: it writes predictions beside the records of a file, in their order."""

import csv
import datetime
import decimal
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import own_files
import pyarrow as pa
import pytest
from corpora import sentences
from own_runs import QUIET, command, config_of
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

import jaxdistill
from jaxdistill import differ
from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError
from jaxdistill.core.types import Variables
from jaxdistill.data.datasets import open_records
from jaxdistill.export.model_folder import read_arrays
from jaxdistill.export.predictor import Predictor


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
    assert {tuple(line["probabilities"]) for line in lines} == {("early", "late")}
    assert [list(line["probabilities"].values()) for line in lines] == expected.probabilities.tolist()
    assert parquet.read_table(home / "out.parquet")["prediction"].to_pylist() == expected.labels
    assert parquet.read_table(home / "out.parquet")["probabilities"].to_pylist()[3] == lines[3]["probabilities"]
    with np.load(home / "out.npz") as arrays:
        assert arrays["confidence"].tolist() == expected.confidence.tolist()
    parquet.write_table(pa.table({"body": ["a b"]}), home / "other.parquet")
    assert command("predict", run, "--input", home / "other.parquet", "--output", home / "o.csv", "--text", "body") == 0


def test_a_config_is_no_run_and_an_answer_that_is_not_finite_is_refused(home, tmp_path, capsys):
    values = np.random.default_rng(0).normal(size=(40, 2))
    rows = [f"{a},{b},{'yes' if a > b else 'no'}" for a, b in values]
    (tmp_path / "two.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    data = {"name": f"table(path='{tmp_path}/two.csv', features=('a', 'b'), label='y')"}
    config = differ(config_of("mlp", home, teachers={}, objective={"cross_entropy": {}}), data=data, steps=2)
    jaxdistill.distill(config, tmp_path / "run", QUIET)
    (tmp_path / "large.csv").write_text("a,b\n0,0\n3e38,-3e38\n")
    (tmp_path / "small.csv").write_text("a,b\n0,0\n1,-1\n")
    files = ("--input", tmp_path / "small.csv", "--output", tmp_path / "out.csv")
    capsys.readouterr()
    assert command("predict", tmp_path / "run", "--input", tmp_path / "large.csv", *files[2:]) == 2
    assert "large.csv, record 1: 'a' is '3e38', not a finite number in 32 bits" in capsys.readouterr().err
    hub = tmp_path / "run" / "student" / "hub"
    arrays = load_file(hub / "model.safetensors")
    (hub / "seal.json").unlink()
    kernels = {name: x * np.float32(1e30) if name.endswith("kernel") else 0 * x for name, x in arrays.items()}
    save_file(kernels, hub / "model.safetensors")
    assert command("predict", tmp_path / "run", *files) == 2
    assert "small.csv, record 1: the model's answer is not finite" in capsys.readouterr().err
    assert command("predict", tmp_path / "run" / "config.json", *files) == 2
    assert "config.json' is a file. Give the folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


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
    capsys.readouterr()  # discard what the training has printed
    assert command("predict", run, *(word.format(home=home) for word in words)) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_pictures_without_classes_is_predicted(home, trained, capsys):
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
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    assert command("predict", run, "--input", folder, "--output", home / "broken.csv", "--image", "image") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --input: ") and "1.png cannot be read as an image" in err


def test_files_of_many_chunks_keep_their_order_and_columns(home, trained, monkeypatch, capsys):
    run = trained("bert")
    rows = [{"words": " ".join("abcdefg"[(n * k) % 7] for k in range(1, 5)), "n": n} for n in range(50)]
    rows[40]["n"] = [1, 2]  # in a later chunk
    (home / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("jaxdistill.data.table.files.ROWS", 8)
    for suffix in ("csv", "jsonl", "npz"):
        assert command("predict", run, "--input", home / "many.jsonl", "--output", home / f"many-out.{suffix}") == 0
    assert command("predict", run, "--input", home / "many.jsonl", "--output", home / "many.jsonl", "--overwrite") == 2
    expected = jaxdistill.load(run).predict([row["words"] for row in rows]).labels
    with (home / "many-out.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["prediction"] for row in found] == expected and found[40]["n"] == "[1, 2]"
    assert [row["words"] for row in found] == [row["words"] for row in rows]
    with np.load(home / "many-out.npz") as arrays:
        assert arrays["prediction"].tolist() == expected and arrays["n"][40] == "[1, 2]"
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
        data={"name": name, "tokens": sentences(home, 8, ", fields={texts}")},
    )
    jaxdistill.distill(config, home / "pairs", QUIET)
    found = jaxdistill.load(home / "pairs").predict([{"q": "a b", "r": "c"}])
    words = ("predict", home / "pairs", "--input", home / "other.jsonl", "--output", home / "pairs.csv")
    assert command(*words, "--text", "x,y") == 0
    with (home / "pairs.csv").open() as file:
        assert next(csv.DictReader(file))["prediction"] == found.labels[0]


def test_grey_pictures_are_prepared_as_in_the_training_but_not_augmented(home):
    """Check that grey images are resized but not flipped, and that paths in a file are relative to that file."""
    folder = home / "grey"
    for number in range(40):
        (folder / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        picture = np.tile(np.uint8([[0, 5 * number, 250]]), (6, 1))
        Image.fromarray(picture).save(folder / "photos" / "ab"[number % 2] / f"{number}.png")
    spec = "mlp(widths=(8,), classes={classes})"
    config = config_of("mlp", home, teachers={}, objective={"cross_entropy": {}}, student={"model": spec})
    name = f"table(path='{folder}/photos', channels=1)"
    config = differ(config, data={"name": name, "augment": ("resize(size=4)", "flip()")})
    jaxdistill.distill(config, folder / "run", QUIET)
    predictor = jaxdistill.load(folder / "run")
    assert predictor.about.transforms == ["resize(size=4)"] and predictor.about.channels == 1
    said = json.loads((folder / "run/student/result.json").read_text())["answers"]
    records = [{"image": str(file)} for file in test_files(folder / "photos", name, home)]
    found = predictor.predict([record["image"] for record in records], batch_size=16)
    assert found.predicted.tolist() == said["predicted"]
    (folder / "new.jsonl").write_text(
        "".join(json.dumps({"image": str(Path(r["image"]).relative_to(folder))}) + "\n" for r in records)
    )
    words = ("--input", folder / "new.jsonl", "--output", folder / "out.jsonl", "--image", "image")
    assert command("predict", folder / "run", *words) == 0
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == found.labels


def test_files(folder: Path, name: str, home: Path) -> list[Path]:
    """Return the image files of the test records, which are identified by their shade."""
    records = open_records(name, "test", home / "prepared", "data", "test")
    numbers = (records.take(np.arange(len(records)))["image"][:, 0, 1, 0] // 5).tolist()
    return [folder / "ab"[number % 2] / f"{number}.png" for number in numbers]


test_files.__test__ = False


def test_the_perplexity_of_a_text_is_that_of_its_mean_token(home, trained):
    run = trained("decoder")
    assert command("predict", run, "--input", home / "texts.jsonl", "--output", home / "ppl.jsonl") == 0
    rows = [json.loads(line) for line in (home / "ppl.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["perplexity"] for row in rows], np.exp([row["nll"] for row in rows]), rtol=1e-6)
    expected = jaxdistill.load(run).predict([row["words"] for row in rows]).nll
    assert [row["nll"] for row in rows] == pytest.approx(expected.tolist(), nan_ok=True)


def test_another_delimiter_is_read(home, trained):
    (home / "semicolons.csv").write_text("words;n\na b;1\nc d;2\n")
    words = ("--input", home / "semicolons.csv", "--output", home / "semicolons-out.csv", "--delimiter", ";")
    assert command("predict", trained("bert"), *words) == 0
    assert len((home / "semicolons-out.csv").read_text().splitlines()) == 3


def test_columns_of_the_input_are_neither_lost_nor_overwritten(home, trained, capsys):
    run = trained("bert")
    rows = [{"words": "a b", "note": "x" if n else None, "size": 1.5 if n else None} for n in range(3)]
    parquet.write_table(pa.Table.from_pylist(rows), home / "gaps.parquet")
    for suffix in ("npz", "jsonl"):
        assert command("predict", run, "--input", home / "gaps.parquet", "--output", home / f"gaps.{suffix}") == 0
    with np.load(home / "gaps.npz") as arrays:
        assert arrays["note"].tolist() == ["", "x", "x"] and np.isnan(arrays["size"][0]) and arrays["size"][1] == 1.5
    first = json.loads((home / "gaps.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)
    assert (first["note"], first["size"]) == (None, None)
    (home / "taken.csv").write_text("words,prediction\na b,good\n")
    assert command("predict", run, "--input", home / "taken.csv", "--output", home / "taken-out.csv") == 2
    assert "has a column 'prediction', which the output adds. Rename it" in capsys.readouterr().err
    assert not (home / "taken-out.csv").exists()


def test_a_text_without_a_likelihood_is_null_in_json(home, trained):
    (home / "short.jsonl").write_text('{"words": "a b c"}\n{"words": "a"}\n')
    words = ("--input", home / "short.jsonl", "--output", home / "short-out.jsonl")
    assert command("predict", trained("decoder"), *words) == 0
    lines = (home / "short-out.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert rows[0]["nll"] > 0 and (rows[1]["nll"], rows[1]["perplexity"]) == (None, None)


def test_the_input_behind_a_folder_a_pattern_or_a_link_is_not_overwritten(home, trained, capsys):
    run, place = trained("bert"), home / "guarded"
    place.mkdir()
    (place / "train.csv").write_text("words\na b\n")
    link, train = home / "link.csv", place / "train.csv"
    link.symlink_to(train)
    for source, output in ((place, train), (place / "{split}.csv", train), (train, link)):
        capsys.readouterr()
        assert command("predict", run, "--input", source, "--output", output) == 2
        assert "exists. Choose another file, or replace it with --overwrite" in capsys.readouterr().err
        assert command("predict", run, "--input", source, "--output", output, "--overwrite") == 2
        message = capsys.readouterr().err
        assert message.startswith("error: --output: ") and "is the input. Choose another file" in message
    assert (place / "train.csv").read_text() == "words\na b\n"
    (place / "d.csv").mkdir()
    assert command("predict", run, "--input", place / "train.csv", "--output", place / "d.csv") == 2
    assert "is a folder" in capsys.readouterr().err
    (place / "target.csv").write_text("old")
    (place / "other.csv").symlink_to(place / "target.csv")
    words = ("predict", run, "--input", place / "train.csv", "--output", place / "other.csv")
    assert command(*words) == 2 and (place / "target.csv").read_text() == "old"
    assert command(*words, "--overwrite") == 0
    assert (place / "other.csv").is_symlink() and "prediction" in (place / "target.csv").read_text()


def test_values_of_other_types_in_a_later_chunk_are_not_changed(home, trained, monkeypatch, capsys):
    monkeypatch.setattr("jaxdistill.data.table.files.ROWS", 4)
    odd = {"fraction": [1, 1, 1, 1, 2.5], "mixed": [1, "x"], "large": [2**70]}
    trained("bert"), capsys.readouterr()  # discard what the training has printed
    for name, values in odd.items():
        rows = "".join(json.dumps({"words": "a", "n": value}) + "\n" for value in values)
        (home / f"{name}.jsonl").write_text(rows)
        words = ("predict", trained("bert"), "--input", home / f"{name}.jsonl", "--output")
        assert command(*words, home / f"{name}.parquet") == 2, name
        message = capsys.readouterr().err
        assert "the column 'n' has values of several types" in message and message.count("\n") == 1
        assert command(*words, home / f"{name}.csv") == 0


def test_every_name_and_number_fits_an_npz_file(home, trained):
    rows = [{"words": "a", "file": 1, "allow_pickle": 2, "id": value} for value in (9007199254740993, None)]
    (home / "names.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--input", home / "names.jsonl", "--output", home / "names.npz")
    assert command("predict", trained("bert"), *words) == 0
    with np.load(home / "names.npz") as arrays:
        assert arrays["id"].tolist() == ["9007199254740993", ""]
        assert arrays["file"].tolist() == [1, 1] and arrays["allow_pickle"].tolist() == [2, 2]


def test_dates_and_odd_texts_are_written_plainly(home, trained):
    table = pa.table({"words": ["a"], "when": [datetime.date(2020, 1, 2)], "price": [decimal.Decimal("1.50")]})
    parquet.write_table(table, home / "dates.parquet")
    words = ("--input", home / "dates.parquet", "--output", home / "dates.jsonl")
    assert command("predict", trained("bert"), *words) == 0
    row = json.loads((home / "dates.jsonl").read_text())
    assert (row["when"], row["price"]) == ("2020-01-02", "1.50")
    (home / "surrogate.jsonl").write_text('{"words": "a", "note": "\\ud800 x"}\n')
    words = ("--input", home / "surrogate.jsonl", "--output", home / "surrogate.csv")
    assert command("predict", trained("bert"), *words) == 0
    assert "? x" in (home / "surrogate.csv").read_text()


def test_a_later_chunk_knows_the_number_of_its_first_record(home, trained, tmp_path, monkeypatch):
    """Check that each chunk knows the number of its first record; errors name the number of a record in the file."""
    (tmp_path / "many.jsonl").write_text('{"words": "a b"}\n' * 1030)
    firsts, predict = [], Predictor.predict

    def spy(self, records, batch_size=None, first=0):
        firsts.append(first)
        return predict(self, records, batch_size, first)

    monkeypatch.setattr(Predictor, "predict", spy)
    words = ("--input", tmp_path / "many.jsonl", "--output", tmp_path / "out.csv")
    assert command("predict", trained("bert"), *words) == 0
    assert firsts == [0, 1024]


def test_weights_that_are_not_those_of_the_model_are_named(home, trained, tmp_path):
    """Check that weights without a seal are compared with the model: a user may have put anything into the folder."""
    folder = tmp_path / "hub"
    shutil.copytree(trained("mlp") / "student" / "hub", folder)
    (folder / "seal.json").unlink()
    whole = load_file(folder / "model.safetensors")
    name = next(name for name in whole if name.endswith("head/kernel"))
    wrong = {
        r"is missing, and the model has \[": {key: x for key, x in whole.items() if key != name},
        r"is \[.*\] int8, and the model has \[.*\] float32": whole | {name: whole[name].astype(np.int8)},
        r"is \[.*\] float32, and the model has": whole | {name: whole[name][:-1]},
        "and the model has missing": whole | {"params/more": whole[name]},
        "has a value that is not a number": whole | {name: whole[name] * np.nan},
    }
    for said, arrays in wrong.items():
        save_file(arrays, folder / "model.safetensors")
        with pytest.raises(DamageError, match=said):
            Predictor(folder)
    seal.write(folder / "seal.json", {"files": {}})  # this seal does not list the weights
    with pytest.raises(DamageError, match=said):
        Predictor(folder)
    save_file(whole, folder / "model.safetensors")
    Predictor(folder)


def test_a_scalar_keeps_its_shape_and_is_read_as_an_earlier_version_wrote_it(tmp_path):
    values = Variables({"scale": jnp.asarray(3.0)}, {})
    file = own_files.write_model(tmp_path, values)
    assert load_file(file)["params/scale"].shape == ()
    (file.parent / "seal.json").unlink()
    save_file({"params/scale": np.full(1, 3, np.float32)}, file)
    scale = read_arrays(file.parent, values).params["scale"]
    assert scale.shape == () and scale == 3
