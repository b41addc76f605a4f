"""Tests of the data set `table`: reading in chunks, unusual values, and what changes a fingerprint."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
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
)

from jaxdistill.core.atomic import remove_folder
from jaxdistill.data.table import dataset
from jaxdistill.data.table.columns import NO_LABEL, Classes, ColumnNames, convert_chunks
from jaxdistill.data.table.record_reader import TableError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", [*FORMATS, "reviews.npz"])
def test_chunks_lose_and_mix_nothing(name, monkeypatch):
    monkeypatch.setattr("jaxdistill.data.table.files.ROWS", 13)
    monkeypatch.setattr("jaxdistill.data.table.arrow_store.RESIDENT", 1)
    monkeypatch.setattr("jaxdistill.data.records.IN_MEMORY", 0)
    if name == "reviews.npz":
        np.savez(name, x=np.arange(60.0)[:, None], y=np.arange(60) % 3)
        spec, order = "table(path='reviews.npz', features='x', label='y')", [0, 1, 2]
    else:
        FORMATS[name](Path(name))
        spec, order = f"table(path={name!r}, text='text', label='kind')", [sorted(WORDS).index(word) for word in WORDS]
    for split, count in (("train", 48), ("test", 12)):
        records = opened(spec, split)
        numbers = np.random.default_rng(0).permutation(count)
        found = records.take(numbers)
        content = found["image"][:, 0] if name == "reviews.npz" else [int(t.split('"')[1]) for t in found["text"]]
        assert len(set(map(int, content))) == count
        assert [order[int(n) % 3] for n in content] == found["label"].tolist()
        inverse = [int(x) for x in np.argsort(numbers)]
        assert [int(content[place]) for place in inverse] == sorted(map(int, content))  # in the file's order


def test_lines_longer_than_a_block_are_whole():
    rows = [{"text": f"{n} " + "x" * 300_000, "kind": WORDS[n % 3]} for n in range(9)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [t for split in ("train", "test") for t in everything(opened(SPEC.replace("csv", "jsonl"), split))["text"]]
    assert sorted(texts) == sorted(row["text"] for row in rows)


def test_labels_with_gaps_blanks_and_spaces():
    values = [1.0, float("nan"), 2.0, None] * 10  # as pandas writes whole numbers with gaps
    parquet.write_table(pa.table({"text": list(map(str, range(40))), "kind": values}), "a.parquet")
    spec = SPEC.replace("csv", "parquet")
    assert opened(spec).class_names == ("1", "2") and len(opened(spec, "unlabelled")) == 20
    write_csv(Path("a.csv"), [{"text": str(n), "kind": (" good", "good ", "bad")[n % 3]} for n in range(30)])
    assert opened(SPEC).class_names == ("bad", "good")


def test_numbers_that_are_none_and_images_of_two_kinds_are_refused():
    np.savez("a.npz", x=np.array([[1.0], [np.nan], [2.0]] * 4), y=np.arange(12) % 2)
    assert "record 1: 'x' is " in refusal("table(path='a.npz', features='x', label='y')").message
    write_images(Path("pets"))
    rows = [{"image": Path("pets/cat/0.png").read_bytes(), "kind": n % 2} for n in range(10)]
    parquet.write_table(pa.Table.from_pylist(rows), "a.parquet")
    assert len(opened("table(path='a.parquet', image='image', label='kind')")) == 8
    mixed = [{"image": n or "pets/cat/0.png", "kind": n % 2} for n in range(9)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    assert "record 1: 1 is neither the path" in refusal("table(path='a.jsonl', image='image', label='kind')").message


def test_photographs_stand_upright():
    picture = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    tags = picture.getexif()
    tags[274] = 6  # Exif orientation: turned by a quarter
    Path("p/x").mkdir(parents=True)
    Path("p/y").mkdir()
    for n in range(8):
        picture.save(f"p/{'xy'[n % 2]}/{n}.jpg", exif=tags)
    assert everything(opened("table(path='p')"))["image"].shape[1:] == (8, 4, 3)


def test_the_choice_of_test_records_is_part_of_the_fingerprint():
    write_csv(Path("a.csv"), [*RECORDS, {"text": "rare", "kind": "odd", "n": 0}])
    specs = [SPEC, f"{SPEC[:-1]}, seed=1)", f"{SPEC[:-1]}, test=0.3)"]
    assert len({opened(spec, split).fingerprint for spec in specs for split in ("train", "test")}) == 6
    assert "rare" in everything(opened(f"{SPEC[:-1]}, test=0.9)"))["text"].tolist()


def test_classes_that_a_file_defines_keep_their_order_and_minus_one_is_no_label():
    """Check codes and names of classes as data sets of Hugging Face store them."""
    classes = Classes(("negative", "positive"))
    codes = classes.codes([1, -1, 0, 1], 0, "f")
    names, places = classes.finish("f", 4)
    assert names == ("negative", "positive")
    assert [NO_LABEL if code < 0 else places[code] for code in codes] == [1, -1, 0, 1]
    with pytest.raises(TableError, match=r"record 0: '2' is none of the 2 classes"):
        Classes(("negative", "positive")).codes([2], 0, "f")


def test_a_saved_data_set_of_hugging_face_is_read_with_its_splits_and_class_names(monkeypatch):
    import datasets

    monkeypatch.setattr("jaxdistill.data.table.files.ROWS", 7)
    features = datasets.Features(
        {"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["poor", "good", "fair"])}
    )
    parts = {
        name: datasets.Dataset.from_list(
            [{"text": f"{name} {n}", "kind": -1 if name == "validation" else n % 3} for n in range(count)], features
        )
        for name, count in (("train", 20), ("test", 9), ("validation", 4))
    }
    datasets.DatasetDict(parts).save_to_disk("saved")
    records = opened("table(path='saved', text='text', label='kind')")
    found = everything(records)
    assert records.class_names == ("poor", "good", "fair") and found["label"].tolist() == [n % 3 for n in range(20)]
    assert found["text"].tolist() == [f"train {n}" for n in range(20)]
    assert records.split_sizes == {"train": 20, "test": 9, "validation": 4}
    parts["train"].save_to_disk("alone")
    assert len(opened("table(path='alone', text='text', label='kind')", "test")) == 4  # one record in five is held out
    pictures = [{"image": Image.fromarray(np.full((4, 4, 3), n, np.uint8)), "kind": n % 3} for n in range(12)]
    features = datasets.Features({"image": datasets.Image(), "kind": features["kind"]})
    datasets.Dataset.from_list(pictures, features).save_to_disk("pictures")
    spec = "table(path='pictures', image='image', label='kind')"
    found = [everything(opened(spec, split)) for split in ("train", "test")]
    assert sorted(shade for part in found for shade in part["image"][:, 0, 0, 0].tolist()) == list(range(12))


def test_another_delimiter_can_be_named_and_is_suggested():
    write_csv(Path("a.csv"), delimiter=";")
    assert "separated by ';': name this delimiter" in refusal(SPEC).message
    semicolons = everything(opened(f"{SPEC[:-1]}, delimiter=';')"))
    write_csv(Path("a.csv"))
    commas = everything(opened(SPEC))
    assert semicolons["text"].tolist() == commas["text"].tolist()
    assert semicolons["label"].tolist() == commas["label"].tolist()
    for wrong in ("delimiter='::'", "delimiter='é'"):
        assert "must be one character" in refusal(f"{SPEC[:-1]}, {wrong})").message
    for wrong in ("base64", "hex", "utf-9"):
        assert f"the encoding '{wrong}' is unknown" in refusal(f"{SPEC[:-1]}, encoding='{wrong}')").message


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_suggested_if_texts_have_commas_too(delimiter):
    rows = [f"a, b{delimiter}x", f"c, d, e{delimiter}y"] * 10
    Path("a.csv").write_text("\n".join([f"text{delimiter}kind", *rows]))
    expected = f"a.csv has ',' between values, and its first line has {delimiter!r}. Name this delimiter"
    assert expected in refusal(SPEC).message
    assert opened(f"{SPEC[:-1]}, delimiter={delimiter!r})").class_names == ("x", "y")


def test_a_split_may_have_several_files():
    Path("parts").mkdir()
    for number in range(3):
        rows = pa.Table.from_pylist(RECORDS[20 * number : 20 * number + 20])
        parquet.write_table(rows, f"parts/train-0000{number}-of-00003.parquet")
    parquet.write_table(pa.Table.from_pylist(RECORDS[:9]), "parts/test-00000-of-00001.parquet")
    spec = "table(path='parts', text='text', label='kind')"
    assert everything(opened(spec))["text"].tolist() == [row["text"] for row in RECORDS]
    assert len(opened(spec, "test")) == 9
    parquet.write_table(pa.table({"other": ["a"]}), "parts/train-00003.parquet")
    assert "train-00003.parquet has other columns than" in refusal(spec).message
    parquet.write_table(pa.Table.from_pylist(RECORDS), "parts/train.parquet")
    assert "the split 'train' has two files" in refusal(spec).message


def test_a_split_of_unlabelled_records_that_is_not_there_says_why():
    write_csv(Path("a.csv"))
    assert "Every record has a label" in refusal(SPEC, "unlabelled").message


def test_an_array_with_a_wrong_number_says_where():
    x = np.ones((12, 3))
    x[7, 2] = np.nan
    np.savez("a.npz", x=x, y=np.arange(12) % 2)
    message = refusal("table(path='a.npz', features='x', label='y')").message
    assert "record 7: 'x' is nan at [2], not a finite number" in message


@pytest.mark.parametrize(
    ("name", "cure"), [("a.json", "call the file .jsonl"), ("a.txt", "a column of texts"), ("a.png", "Give the folder")]
)
def test_a_format_that_people_try_has_a_cure(name, cure):
    Path(name).touch()
    assert cure in refusal(f"table(path={name!r}, text='text')").message


def test_how_a_file_is_written_is_part_of_its_fingerprint():
    """Check that the encoding changes the fingerprint, or else a copy read with a wrong one would be used again."""
    Path("a.csv").write_text("text,kind\n" + "é,a\nü,b\n" * 10, encoding="latin-1")
    wrong = opened(f"{SPEC[:-1]}, encoding='cp1251')")
    right = opened(f"{SPEC[:-1]}, encoding='latin-1')")
    assert set(everything(right)["text"]) == {"é", "ü"} != set(everything(wrong)["text"])
    assert wrong.fingerprint != right.fingerprint


def test_a_mistake_of_a_later_chunk_has_its_own_number(monkeypatch):
    monkeypatch.setattr("jaxdistill.data.table.files.ROWS", 8)
    rows = [{"text": "a" if n != 21 else None, "kind": n % 2} for n in range(30)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "record 21: 'text' is missing" in refusal(SPEC.replace("csv", "jsonl")).message


@pytest.mark.parametrize(("labels", "classes"), [(30, False), (25, True), (20, True)])
def test_as_many_labels_as_half_of_the_records_are_no_classes(labels, classes):
    write_csv(Path("a.csv"), [{"text": "t", "kind": f"w{n % labels}"} for n in range(50)])
    if classes:
        # A class may have two records, a fifth of which is less than one; a fifth of all records is held out still.
        assert opened(SPEC).classes == labels and len(opened(SPEC, "test")) == 10
    else:
        assert "50 records have 30 different labels" in refusal(SPEC).message


def test_paths_and_contents_of_images_in_one_column_are_refused():
    column_names = ColumnNames((), "", "image", ())
    one_kind = [{"bytes": b"a", "path": None}, {"bytes": b"b", "path": "b.png"}]
    assert next(convert_chunks(iter([{"image": one_kind}]), column_names, Classes(), "f"))["image"] == [b"a", b"b"]
    mixed = iter([{"image": [{"bytes": b"a"}, {"path": "b.png"}]}])
    with pytest.raises(TableError, match="f, record 1: "):
        next(convert_chunks(mixed, column_names, Classes(), "f"))


def test_a_broken_image_is_found_before_anything_is_trained():
    write_images(Path("p"))
    Path("p/dog/9.png").write_bytes(Path("p/dog/9.png").read_bytes()[:-30])
    assert "dog/9.png" in refusal("table(path='p')").message
    assert not list(Path("prepared").rglob("*.arrow"))


def test_a_changed_picture_and_other_channels_change_the_fingerprint_of_a_folder():
    write_images(Path("p"))
    before = opened("table(path='p')").fingerprint
    assert opened("table(path='p', channels=1)").fingerprint != before
    os.utime("p/cat/0.png", ns=(10**18, 10**18))  # like an edit that keeps the size
    assert opened("table(path='p')").fingerprint != before


def test_classes_behind_links_are_looked_at_and_a_circle_ends():
    write_images(Path("real"))
    Path("links").mkdir()
    for name in ("cat", "dog"):
        Path("links", name).symlink_to(Path("real", name).absolute())
    before = opened("table(path='links')")
    Path("real/cat/99.png").write_bytes(Path("real/cat/1.png").read_bytes())
    after = opened("table(path='links')")
    assert len(before) == 16 and len(after) == 17 and before.fingerprint != after.fingerprint
    Path("real/cat/circle").symlink_to(Path("real").absolute())
    assert len(opened("table(path='links')")) == 17


def test_names_of_fields_of_a_batch_are_no_names_of_texts():
    write_csv(Path("a.csv"), [{"label": "a", "other": "b", "kind": n % 2} for n in range(20)])
    spec = "table(path='a.csv', text=('label', 'other'), label='kind')"
    assert "cannot be called 'label', a field of batches" in refusal(spec).message


def test_json_lines_may_begin_with_a_byte_order_mark():
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RECORDS), encoding="utf-8-sig")
    assert len(opened(SPEC.replace("csv", "jsonl"))) == 48


def test_a_missing_image_is_named_and_a_changed_one_changes_the_fingerprint():
    write_images(Path("p"))
    rows = [{"image": f"p/{'cat' if n % 2 else 'dog'}/{n % 10}.png", "kind": n % 2} for n in range(20)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = "table(path='a.jsonl', image='image', label='kind')"
    before = opened(spec).fingerprint
    os.utime("p/dog/4.png", ns=(10**18, 10**18))
    assert opened(spec).fingerprint != before
    Path("p/dog/4.png").unlink()
    assert "p/dog/4.png" in refusal(spec).message and "record" in refusal(spec).message


def test_records_of_another_shape_in_a_later_chunk_are_refused(monkeypatch):
    monkeypatch.setattr("jaxdistill.data.table.files.ROWS", 8)
    rows = [{"x": [1.0, 2.0] if n < 20 else [1.0], "y": n % 2} for n in range(24)]
    rows[20:24] = [{"x": [1.0], "y": 0}] * 4
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:16] + rows[20:]))
    message = refusal("table(path='a.jsonl', features='x', label='y')").message
    assert "record 16: 'image' has arrays [1] float32, and the records before have arrays [2]" in message


def test_json_lines_in_utf_16_are_read():
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RECORDS), encoding="utf-16")
    spec = SPEC.replace("csv", "jsonl")
    texts = [everything(opened(f"{spec[:-1]}, encoding='utf-16')", split))["text"] for split in ("train", "test")]
    assert sorted(text for part in texts for text in part) == sorted(row["text"] for row in RECORDS)


def test_a_table_that_another_process_removes_is_made_again(monkeypatch):
    """Simulate another process that removes a table just after it was written."""
    write_csv(Path("a.csv"))
    open_tables, calls = dataset.arrow_store.open_tables, []

    def removed_once(folder):
        calls.append(folder)
        if len(calls) == 2:  # it was just written
            remove_folder(folder)
        return open_tables(folder)

    monkeypatch.setattr(dataset.arrow_store, "open_tables", removed_once)
    assert len(opened(SPEC)) == 48 and len(calls) == 3


def test_folders_with_equal_listings_are_told_apart():
    for name, shade in (("one", 0), ("two", 200)):
        write_images(Path(name))
        for file in Path(name).rglob("*.png"):
            Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(file)
    size = max(file.stat().st_size for file in Path().rglob("*.png"))
    for file in Path().rglob("*.png"):
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    for place in Path().rglob("*"):
        os.utime(place, ns=(10**18, 10**18))
    one, two = (opened(f"table(path={name!r})") for name in ("one", "two"))
    assert everything(one)["image"].max() == 0 and everything(two)["image"].min() == 200
    assert one.fingerprint != two.fingerprint


def test_a_class_with_hardly_any_record_is_told():
    classes = Classes()
    classes.codes(["pos", "neg"] * 20 + ["pso", ""], 0, "f")
    classes.finish("f", 42)
    said = "the class 'pso' has 1 record (the first is 40); check the spelling"
    assert classes.doubtful_labels() == said
    classes.codes(["pso", "neg"], 0, "f")  # labels of a second split do not count
    assert classes.doubtful_labels() == said
    two = Classes()
    two.codes(["a", "b", "c"] * 3 + ["d", "d", "e"], 0, "f")
    assert (
        two.doubtful_labels()
        == "the class 'd' has 2 records (the first is 9), and 1 more classes have so few; check the spelling"
    )
    few = Classes()
    few.codes(["a", "b", "b", "c"], 0, "f")
    assert few.doubtful_labels() == ""  # most classes are small here
