"""Tests of the error messages of the data set `table`, about wrong files, wrong records and wrong arguments."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from table_files import SPEC, opened, refusal, write_csv

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.datasets import open_records
from jaxdistill.data.table.columns import Classes
from jaxdistill.data.table.record_reader import TableError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


BAD = {  # what is wrong: (the file's content, what the message says)
    "an empty file": ("", "a.csv is empty"),
    "a heading alone": ("text,kind\n", "a.csv has no records"),
    "a column that is not there": ("words,kind\na,b\nc,d\n", "text: 'text' is no column of a.csv. Known: kind, words"),
    "a broken line": ("text,kind\na,b\nc\nd,e\n", "Row #3: Expected 2 columns, got 1: c"),
    "a column twice": ("text,text\na,b\n", "has two columns 'text'"),
    "words and numbers": (
        "text,kind\na,1\nb,good\nc,2\n",
        "(record 0 has '1', record 1 has 'good')",
    ),
    "half a label": ("text,kind\na,0.5\nb,1\n", "record 0: '0.5' is no label. Labels are words or whole numbers"),
    "half a negative label": ("text,kind\na,-0.5\nb,1\n", "record 0: '-0.5' is no label"),
    "half a label with a sign": ("text,kind\na,+0.5\nb,1\n", "record 0: '+0.5' is no label"),
    "no label": ("text,kind\na,\nb,\n", "no record has a label. Leave the argument label out"),
    "a label of its own": ("text,kind\n" + "".join(f"a,w{n}\n" for n in range(40)), "so they are no classes"),
    "a label of several lines": ('text,kind\na,b\nc,"d\ne,f\ng,b\n', "record 1: the label 'd\\ne,f\\ng,b' has several"),
    "an open quotation mark": ('kind,text\nb,a\nd,"c\nb,e\nd,f\n', "the last record has several lines (unexpected end"),
    "an open quotation mark far before the end": (
        'kind,text\nb,a\nd,"c\n' + "b,e\n" * 50_000,
        "(unexpected end of data). ",
    ),
    "one class": ("text,kind\na,b\nc,b\n", "all labels are 'b'; a classifier needs two classes"),
    "zero bytes": ("text,kind\n" + "a,b\nc\0,d\n" * 9, "record 1: 'text' has a zero byte, as no text has. Name the"),
    "few records": ("text,kind\na,b\nc,d\n", "too few records (2)"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_a_wrong_file_is_one_line_and_leaves_nothing(mistake):
    content, said = BAD[mistake]
    Path("a.csv").write_text(content)
    error = refusal(SPEC)
    assert error.path == "data.name" and said in error.message
    if mistake != "few records":  # such a file can be read, but not split
        assert list(Path("prepared").rglob("*.arrow")) == []


def test_half_a_label_is_none_in_files_with_types_either():
    lines = lambda *labels: "".join(json.dumps({"text": "a", "kind": label}) + "\n" for label in labels)
    Path("a.jsonl").write_text(lines(0.5, 1, 2))
    spec = "table(path='a.jsonl', text='text', label='kind')"
    assert "record 0: 0.5 is no label" in refusal(spec).message
    Path("a.jsonl").write_text(lines(*(0.0, 1.0, 0, 1, None) * 4))
    assert opened(spec).class_names == ("0", "1")


LINES = {
    "no JSON": ('{"text": "a"}\n{"text": \n', "a.jsonl, line 2, is not JSON"),
    "no object": ("[1]\n", "line 1, is not a JSON object"),
    "a key twice": ('{"text": "a", "text": "b"}\n', "line 1, is not JSON (the key 'text' stands twice)"),
    "no key in the first record": (
        '{"words": "a"}\n{"text": "b"}\n',
        "'text' is no key of the first record of a.jsonl",
    ),
    "no such key": ('{"text": "a"}\n{"words": "b"}\n', "record 1: 'text' is missing"),
    "a number as text": ('{"text": "a"}\n{"text": 7}\n', "record 1: 'text' is 7, not a text"),
    "no text": ('{"text": "a"}\n{"text": null}\n', "record 1: 'text' is missing"),
}


@pytest.mark.parametrize("mistake", LINES)
def test_a_wrong_line_is_named(mistake):
    content, said = LINES[mistake]
    Path("a.jsonl").write_text(content)
    assert said in refusal("table(path='a.jsonl', text='text')").message


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("table(path='none.csv', text='text')", "there is no such file or folder; "),
        ("table(path='a.doc', text='text')", "unknown format '.doc'"),
        ("table(path='a.csv')", "name the columns to learn from, as text=, image= or features="),
        ("table(path='a.csv', text='text', test=1.5)", "test=1.5 must be between 0 and 1"),
        ("table(path='a.csv', text='text', seed=-1)", "seed=-1 must be between 0 and 2^63 - 1"),
        (f"table(path='a.csv', text='text', seed={2**63})", "must be between 0 and 2^63 - 1"),
        ("table(path='d.npz', features='x', label='y')", "record 0: b'\\xff' is no label"),
        ("table(path='pictures')", "pictures/cat/2.png is a link to a file that does not exist"),
        ("table(path='a.csv', features=('kind', 'kind'))", "features: the column 'kind' is named twice"),
        ("table(path='loop.csv', text='text')", "this is a link to a file that does not exist"),
        ("table(path='a.csv', text='te\\u0445t')", "looks alike: 'te\\u0445t', 'text'"),
        ("table(path='blank.csv', text='text')", "Did you mean ' text'? Known: ' text', kind."),
        ("table(path='a.csv', text='text', split='train')", "sets split, which is the key data.train"),
        ("table(path='a.csv', text='text', folder='x')", "sets folder, which is the key data.folder"),
        (
            "table(path='a.csv', text=('text', 'kind'), label='kind')",
            "the model would read the label 'kind'",
        ),
        (
            "table(path='large.csv', features='x')",
            "record 1: 'x' is '1e39', not a finite number in 32 bits, or its square is not",
        ),
        ("table(path='a.csv', text='text', encoding='idna')", "the encoding 'idna' is unknown"),
        ("table(path='a.csv', features='text')", "record 0: 'text' is 'say"),
        ("table(path='a.npz', features='x', label='y')", "all arrays must have one row for each record"),
        ("table(path='c.npz', features='x')", "c.npz: 'x' has the shape [3, 0]: its records are empty."),
        ("table(path='b.npz', features='x')", "is not an npz file of plain arrays"),
        ("table(path='broken.parquet', text='x')", "broken.parquet: "),
        ("table(path='{split}.tsv', text='x')", "there is no 'train.tsv', for the training records"),
    ],
)
def test_what_cannot_be_read_is_said(spec, said):
    write_csv(Path("a.csv"))
    Path("a.doc").touch()
    Path("loop.csv").symlink_to("loop.csv")
    np.savez("d.npz", x=np.zeros((4, 2)), y=np.array([b"\xff", b"\xfe", b"c", b"c"]))
    Path("pictures/cat").mkdir(parents=True)
    Path("pictures/cat/2.png").symlink_to("nothing.png")
    Path("blank.csv").write_text("kind, text\na,b\n")
    Path("large.csv").write_text("x\n1\n1e39\n")
    np.savez("a.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    np.savez("c.npz", x=np.zeros((3, 0)))
    np.savez("b.npz", x=np.array([{}], dtype=object))
    Path("broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    assert said in refusal(spec).message


@pytest.mark.parametrize("date", [0, 10, 0x0A0A0A0A, 0x2C2C0A2C, 1764549000])  # in seconds; in the bytes, with newlines
@pytest.mark.parametrize("name", ["packed.csv", "packed.tsv", "packed.jsonl"])
def test_a_compressed_file_without_the_suffix_is_named_whatever_its_date(name, date):
    Path(name).write_bytes(gzip.compress(b"text,kind\na,b\n" * 99, mtime=date))
    for encoding in ("utf-8", "latin-1"):
        message = refusal(f"table(path={name!r}, text='text', encoding={encoding!r})").message
        assert "it is compressed. Give it a name that ends with .gz" in message


@pytest.mark.slow  # it waits for a network
def test_a_hub_name_without_its_library_or_a_network_is_one_line():
    message = refusal("table(path='nobody/nothing', text='text')").message
    assert "jaxdistill[datasets]" in message or "cannot be loaded by datasets" in message


def test_a_file_in_place_of_the_folder_of_prepared_data_is_named():
    write_csv(Path("a.csv"))
    with pytest.raises(ConfigError, match=r"^data\.folder: .*a\.csv/tables.* cannot be written") as error:
        open_records("table(path='a.csv', text='text')", "train", Path("a.csv"), "data", "train")
    assert "choose another folder" in error.value.message


@pytest.mark.parametrize("split", ["train[:110%]", "train[-101%:]"])
def test_a_split_ends_at_its_last_record(split):
    write_csv(Path("a.csv"))
    assert "is more than the whole split" in refusal("table(path='a.csv', text='text')", split).message


@pytest.mark.parametrize("code", [2, "2", 3, -2])
def test_a_number_beyond_the_classes_that_a_file_defines_is_named(code):
    classes = Classes(("no", "yes"))
    assert classes.codes([1, 0, -1], 0, "a.parquet") == [0, 1, -1]
    with pytest.raises(TableError, match=rf"a\.parquet, record 7: '{code}' is none of the 2 classes of the file"):
        classes.codes([code], 7, "a.parquet")


def test_an_unpaired_surrogate_is_neither_text_nor_label():
    lines = [{"text": "a", "kind": "x"}] * 4
    for field, said in (("text", "record 4: 'text' has an unpaired surrogate"), ("kind", "record 4: .* is no label")):
        Path("half.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*lines, {**lines[0], field: "\ud800"}])
        )
        assert re.search(said, refusal("table(path='half.jsonl', text='text', label='kind')").message)
