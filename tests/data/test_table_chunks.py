"""The data set `table`: chunks, odd values and fingerprints, where records could be lost or mixed without a word."""

import json
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

from jaxdistill.data.table.columns import UNLABELLED, Classes
from jaxdistill.data.table.files import Problem


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
        assert [int(content[place]) for place in inverse] == sorted(map(int, content))  # in the order of the file


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
    tags[274] = 6  # turned by a quarter
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
    """As data sets of Hugging Face have them."""
    classes = Classes(("negative", "positive"))
    codes = classes.codes([1, -1, 0, 1], 0, "f")
    names, places = classes.finish("f", 4)
    assert names == ("negative", "positive")
    assert [UNLABELLED if code < 0 else places[code] for code in codes] == [1, -1, 0, 1]
    with pytest.raises(Problem, match=r"record 0: '2' is none of the 2 classes"):
        Classes(("negative", "positive")).codes([2], 0, "f")
