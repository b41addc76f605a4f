"""Tests of the data set `table`: equal records from all formats, splits, labels, images and prepared copies."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import runs
from PIL import Image
from pyarrow import parquet
from table_files import (
    FORMATS,
    RECORDS,
    SPEC,
    WORDS,
    everything,
    opened,
    refusal,
    write_csv,
    write_images,
    write_parquet,
)

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.table import arrow_store, images


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(name):
    FORMATS[name](Path(name))
    whole = {
        split: everything(opened(f"table(path={name!r}, text='text', label='kind')", split))
        for split in ("train", "test")
    }
    found = {text: label for part in whole.values() for text, label in zip(part["text"], part["label"], strict=True)}
    order = sorted(WORDS)
    assert found == {row["text"]: order.index(row["kind"]) for row in RECORDS}
    assert opened(f"table(path={name!r}, text='text', label='kind')").class_names == tuple(order)


def test_a_compressed_file_is_read():
    import gzip

    write_csv(Path("reviews.csv"))
    Path("more.csv.gz").write_bytes(gzip.compress(Path("reviews.csv").read_bytes()))
    one, other = (opened(f"table(path={name!r}, text='text')") for name in ("reviews.csv", "more.csv.gz"))
    assert everything(one)["text"].tolist() == everything(other)["text"].tolist()


def test_another_encoding_can_be_named():
    write_csv(Path("a.csv"), [{"text": "größer", "kind": word} for word in WORDS * 10], encoding="latin-1")
    error = refusal(SPEC)
    assert "is not written in utf-8" in error.message and "such as latin-1" in error.message
    assert (
        everything(opened("table(path='a.csv', text='text', label='kind', encoding='latin-1')"))["text"][0] == "größer"
    )


def test_held_out_records_have_the_classes_of_all_and_none_is_in_both():
    write_csv(Path("a.csv"))
    spec = "table(path='a.csv', text='text', label='kind', test=0.25)"
    train, test = everything(opened(spec)), everything(opened(spec, "test"))
    assert np.bincount(test["label"]).tolist() == [5, 5, 5] and np.bincount(train["label"]).tolist() == [15, 15, 15]
    assert not set(train["text"]) & set(test["text"])
    again = everything(opened(spec, "test"))
    assert again["text"].tolist() == test["text"].tolist()
    other = everything(opened(spec.replace("0.25", "0.25, seed=1"), "test"))
    assert other["text"].tolist() != test["text"].tolist()


def test_a_class_of_one_record_is_trained_on():
    write_csv(Path("a.csv"), [*RECORDS, {"text": "rare", "kind": "odd", "n": 0}])
    spec = "table(path='a.csv', text='text', label='kind', test=0.5)"
    assert "rare" in everything(opened(spec))["text"].tolist()


def test_slices_and_sums_of_splits():
    write_csv(Path("a.csv"))
    spec = SPEC
    assert [len(opened(spec, split)) for split in ("train", "train[:50%]", "train[10:]", "train+test")] == [
        48,
        24,
        38,
        60,
    ]
    first, rest = everything(opened(spec, "train[:10]")), everything(opened(spec, "train[10:]"))
    assert [*first["text"], *rest["text"]] == everything(opened(spec))["text"].tolist()


@pytest.mark.parametrize("split", ["trian", "train[", "train[5:5]", "validation"])
def test_a_split_that_is_not_there_names_those_that_are(split):
    write_csv(Path("a.csv"))
    assert refusal(SPEC, split).path == "data.train"


def test_a_file_for_each_split():
    Path("data").mkdir()
    write_csv(Path("data/train.csv"), RECORDS[:40])
    write_csv(Path("data/test.csv"), RECORDS[40:])
    for path in ("data", "data/{split}.csv"):
        spec = f"table(path={path!r}, text='text', label='kind')"
        assert (len(opened(spec)), len(opened(spec, "test"))) == (40, 20)
    write_csv(Path("data/submission.csv"), [{"id": 1}])  # `submission` is no split
    assert len(opened("table(path='data/{split}.csv', text='text', label='kind')")) == 40
    assert "'submission.csv', which is no split" in refusal("table(path='data', text='text', label='kind')").message
    Path("data/submission.csv").unlink()
    for split, rows in (("train", RECORDS[:40]), ("test", RECORDS[40:])):
        Path("by", split).mkdir(parents=True)
        write_csv(Path("by", split, "x.csv"), rows)
    assert len(opened("table(path='by/{split}/x.csv', text='text', label='kind')", "test")) == 20
    write_csv(Path("data/test.csv"), [{**RECORDS[0], "kind": "new"}])
    error = refusal("table(path='data', text='text', label='kind')")
    assert "the label 'new' does not occur in the training records" in error.message and "record 0" in error.message
    write_csv(Path("data/test.tsv"), delimiter="\t")
    assert "the split 'test' has two files" in refusal("table(path='data', text='text', label='kind')").message


def test_records_without_a_label_are_a_split():
    rows = [{**row, "kind": row["kind"] if row["n"] < 20 else ""} for row in RECORDS]
    write_csv(Path("a.csv"), rows)
    spec = SPEC
    unlabelled = opened(spec, "unlabelled")
    assert len(unlabelled) == 40 and set(everything(unlabelled)) == {"text"}
    assert len(opened(spec)) + len(opened(spec, "test")) == 20
    assert "label" not in everything(opened(spec, "train+unlabelled"))
    Path("b").mkdir()
    write_csv(Path("b/train.csv"), RECORDS)
    write_csv(Path("b/test.csv"), rows)
    both = "table(path='b', text='text', label='kind')"
    assert len(opened(both)) == 60
    assert "record 20 has no label, and others have one" in refusal(both, "test").message
    write_csv(Path("b/test.csv"), [{"text": row["text"]} for row in RECORDS])  # a test file without labels
    assert set(everything(opened(both, "test"))) == {"text"}
    write_csv(Path("b/unlabelled.csv"), RECORDS)
    write_csv(Path("b/train.csv"), rows)
    assert "there is a file for the split 'unlabelled'" in refusal(both).message


def test_numbers_as_labels_are_ordered_by_value():
    write_csv(Path("a.csv"), [{"text": str(n), "stars": (10, 2, 1)[n % 3]} for n in range(30)])
    assert opened("table(path='a.csv', text='text', label='stars')").class_names == ("1", "2", "10")


def test_labels_of_words_stay_as_they_are_written():
    write_csv(Path("a.csv"), [{"text": str(n), "code": ("007", "7", "nan", "Inf")[n % 4]} for n in range(40)])
    spec = "table(path='a.csv', text='text', label='code')"
    assert "some labels are numbers and others are words" in refusal(spec).message
    write_csv(Path("a.csv"), [{"text": str(n), "code": ("007", "nan", "a b")[n % 3]} for n in range(40)])
    assert opened(spec).class_names == ("007", "a b", "nan")
    write_csv(Path("a.csv"), [{"text": str(n), "code": ("1", "1.0", "2")[n % 3]} for n in range(40)])
    assert opened(spec).class_names == ("1", "2")


def test_changed_labels_and_images_change_the_fingerprint():
    write_csv(Path("a.csv"))
    before = opened(SPEC).fingerprint
    swapped = {"good": "bad", "bad": "good", "fair": "fair"}
    write_csv(Path("a.csv"), [{**row, "kind": swapped[row["kind"]]} for row in RECORDS])
    assert opened(SPEC).fingerprint != before
    write_images(Path("pets"))
    write_csv(Path("pets.csv"), [{"file": f"pets/cat/{n}.png", "kind": n % 2} for n in range(10)])
    for spec in ("table(path='pets')", "table(path='pets.csv', image='file', label='kind')"):
        before = opened(spec).fingerprint
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("pets/cat/3.png")
        assert opened(spec).fingerprint != before
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("pets/cat/3.png")


def test_a_folder_that_is_no_split_is_named_and_images_need_no_classes():
    write_images(Path("k/train"))
    write_images(Path("k/extra"))
    assert "has the folder 'extra' beside 'train', which is no split" in refusal("table(path='k')").message
    flat = everything(opened("table(path='k/train/cat')"))
    assert set(flat) == {"image"} and len(flat["image"]) == 8


def test_a_pair_of_texts_keeps_its_names():
    write_csv(Path("a.csv"))
    found = everything(opened("table(path='a.csv', text=('text', 'kind'))"))
    assert found.keys() == {"text", "kind"}
    assert set(zip(found["text"], found["kind"], strict=True)) < {(row["text"], row["kind"]) for row in RECORDS}


def test_numbers_become_vectors_and_arrays_stay_as_they_are():
    write_csv(Path("a.csv"), [{"a": n, "b": n / 4, "y": n % 2} for n in range(20)])
    vectors = everything(opened("table(path='a.csv', features=('a', 'b'), label='y')"))["image"]
    assert vectors.dtype == np.float32 and vectors.shape == (16, 2)
    assert np.all(vectors[:, 1] == vectors[:, 0] / 4)
    pixels = np.arange(20 * 6, dtype=np.uint8).reshape(20, 2, 3)
    np.savez("a.npz", x=pixels, y=np.arange(20) % 2)
    found = everything(opened("table(path='a.npz', image='x', label='y')"))
    assert found["image"].dtype == np.uint8 and found["image"].shape == (16, 2, 3, 1)
    assert {row.tobytes() for row in found["image"]} < {row.tobytes() for row in pixels}
    flat = everything(opened("table(path='a.npz', features='x', label='y')"))["image"]
    assert flat.shape == (16, 6) and flat.dtype == np.float32


def test_a_folder_of_images_by_class():
    write_images(Path("pets"))
    found = opened("table(path='pets')")
    assert found.class_names == ("cat", "dog") and everything(found)["image"].shape == (16, 8, 8, 3)
    values = everything(found)
    assert np.all((values["image"][:, 0, 0, 0] >= 100) == values["label"])
    write_images(Path("split/train"))
    write_images(Path("split/test"))
    assert len(opened("table(path='split', channels=1)", "test")) == 20
    Path("pets/cat/broken.png").write_bytes(b"no image")
    assert "broken.png cannot be read as an image" in refusal("table(path='pets')").message


@pytest.mark.parametrize("mode", ["grey", "colours"])
def test_images_of_16_bits_are_scaled_and_those_of_32_are_refused(mode):
    """Check that grey values of 16 bits are scaled to 8, because Pillow would clip them at 255."""
    values = np.array([[0, 255, 256], [30_000, 60_000, 65_535]], np.uint16)
    Image.fromarray(values).save("x.png")
    pixels = images.decode("x.png", 1 if mode == "grey" else 3)
    assert pixels.dtype == np.uint8 and pixels[..., 0].tolist() == [[0, 0, 1], [117, 234, 255]]
    Image.fromarray(values.astype(np.float32)).save("x.tif")
    with pytest.raises(ConfigError, match="its pixels have 32 bits; convert it to 8 or 16"):
        images.decode("x.tif", 3)


def test_images_that_a_table_names():
    write_images(Path("pets"))
    write_csv(Path("pets.csv"), [{"file": f"pets/cat/{n}.png", "kind": n % 2} for n in range(10)])
    assert everything(opened("table(path='pets.csv', image='file', label='kind')"))["image"].shape == (8, 8, 8, 3)
    content = [{"picture": Path(f"pets/dog/{n}.png").read_bytes(), "kind": n % 2} for n in range(10)]
    parquet.write_table(pa.Table.from_pylist(content), "pets.parquet")
    assert everything(opened("table(path='pets.parquet', image='picture', label='kind')"))["image"].shape == (
        8,
        8,
        8,
        3,
    )


def test_a_changed_file_is_read_again_and_a_damaged_copy_is_made_again(capsys):
    write_csv(Path("a.csv"))
    spec = SPEC
    before = everything(opened(spec))["text"].tolist()
    (file,) = Path("prepared/tables").glob("*/train.arrow")
    runs.flip(file, file.stat().st_size // 2)
    assert everything(opened(spec))["text"].tolist() == before
    assert "reading a.csv again" in capsys.readouterr().err
    write_csv(Path("a.csv"), RECORDS[:30])
    assert len(opened(spec)) == 24
    assert opened(spec).fingerprint != opened(spec, "test").fingerprint


def test_quotation_marks_within_a_text_are_no_mistake():
    Path("a.csv").write_text("text,kind\n" + 'a,b\n5" wide,c\n"two\nlines",b\n' * 5)
    assert len(opened(SPEC)) + len(opened(SPEC, "test")) == 15
    Path("b.csv").write_text("kind,text\n" + 'x,"a"b\nq,y\nb,"c\nd"\n' * 5)  # `csv` would refuse this
    spec = SPEC.replace("a.csv", "b.csv")
    assert len(opened(spec)) + len(opened(spec, "test")) == 15


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("NA", "b", "c"), "the label 'NA' is a class like any other; leave the cell empty"),
        (("b ", "b", "c"), "the labels 'b ' and 'b' are one class, because blanks around a label are removed"),
    ],
)
def test_labels_that_may_be_a_slip_are_told(labels, said, capsys):
    Path("a.csv").write_text("text,kind\n" + "".join(f"a,{label}\n" for label in labels * 8))
    opened(SPEC)
    assert said in capsys.readouterr().err


def test_minus_one_is_said_to_be_a_class(capsys):
    Path("a.csv").write_text("text,kind\n" + "".join(f"a,{label}\n" for label in (-1, 0, 1) * 8))
    assert opened(SPEC).class_names == ("-1", "0", "1")
    assert "the label '-1' is a class like any other; leave the cell empty" in capsys.readouterr().err


def test_a_prepared_copy_that_lost_its_description_is_made_again(capsys):
    write_csv(Path("a.csv"))
    before = everything(opened(SPEC))["text"].tolist()
    (file,) = Path("prepared").rglob(arrow_store.MANIFEST)
    file.unlink()
    assert everything(opened(SPEC))["text"].tolist() == before
    assert "holds no table.json; reading a.csv again" in capsys.readouterr().err


def test_records_are_read_a_few_at_a_time(monkeypatch):
    """Check that opening a table takes single records only, because a file may be larger than memory."""
    write_parquet(Path("a.parquet"))
    monkeypatch.setattr("jaxdistill.data.records.IN_MEMORY", 0)
    taken: list[int] = []
    take = arrow_store.ArrowFile.take
    monkeypatch.setattr(arrow_store.ArrowFile, "take", lambda self, rows: taken.append(len(rows)) or take(self, rows))
    records = opened("table(path='a.parquet', text='text', label='kind')")
    assert not records.in_memory and max(taken) == 1
    batch = records.take(np.array([7, 3, 41]))
    assert batch["text"].tolist() == [everything(records)["text"][place] for place in (7, 3, 41)]


def test_files_that_are_no_images_are_told(capsys):
    for n in range(8):
        Path("p", "xy"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (9 * n, 0, 0)).save(f"p/{'xy'[n % 2]}/{n}.png")
    opened("table(path='p')")
    assert "skipped" not in capsys.readouterr().err
    for name in ("x/photo.heic", "x/more.svg", "y/photo.heic", "loose.png", "x/.hidden"):
        Path("p", name).touch()
    assert len(opened("table(path='p')")) + len(opened("table(path='p')", "test")) == 8
    said = capsys.readouterr().err
    assert "note: p/loose.png: skipped, because it is no image (.png" in said
    assert "note: p/x/more.svg and 1 more files: skipped" in said and "note: p/y/photo.heic: skipped" in said
