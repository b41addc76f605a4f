"""Tests of texts as token arrays: the contents of rows, the cache on disk, packed documents, error messages."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import runs
from corpora import WORDS, Labelled, documents, sentences, written
from tokenizers import Tokenizer

import jaxdistill
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.data import Batches, evaluation_batches, open_records
from jaxdistill.data.describe import describe_split
from jaxdistill.data.text import token_cache, tokenizer
from jaxdistill.data.text.unigram import unigram_nll

A, B, C, D, E, F, G = range(5, 12)
CLS, SEP = 2, 3


def remarks(split: str, texts: tuple[str, ...] = ("a b", "c d e f g", "", "b")):
    told = {"other": "g f", "label_probs": np.array([0.25, 0.75])}
    return Labelled({"text": text.encode(), "label": i % 2, "rating": i / 2, **told} for i, text in enumerate(texts))


def stories(split: str):
    return [{"text": text} for text in ("a b c", "d e f g", "a")]


@pytest.fixture(autouse=True, scope="module")
def registered():
    for factory in (remarks, stories):
        datasets.register(factory)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("words"), WORDS)


def opened(tokens: str, folder: Path, name: str = "remarks", split: str = "train"):
    return open_records(name, split, folder, "data", "train", tokens)


def everything(records):
    return records.take(np.arange(len(records)))


def manifests(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("tokens/*/manifest.json"))]


# Sentences


def test_a_sentence_is_cut_or_padded_and_keeps_what_else_its_record_holds(words, tmp_path):
    found = everything(opened(sentences(words), tmp_path))
    assert found["input_ids"].tolist() == [
        [CLS, A, B, SEP, 0],
        [CLS, C, D, E, SEP],
        [CLS, SEP, 0, 0, 0],
        [CLS, B, SEP, 0, 0],
    ]
    assert np.array_equal(found["attention_mask"], found["input_ids"] != 0)
    assert found["input_ids"].dtype == found["attention_mask"].dtype == np.int32
    assert set(found) == {"input_ids", "attention_mask", "label", "label_probs", "rating"}
    assert found["label"].tolist() == [0, 1, 0, 1]
    (about,) = manifests(tmp_path)
    assert (about["texts"], about["cut"], about["tokens"], about["vocabulary"]) == (4, 1, 14, 12)


def test_of_a_pair_the_longer_text_is_cut_first(words, tmp_path):
    found = everything(opened(sentences(words, 8, ", fields=('text', 'other')"), tmp_path))
    assert found["input_ids"].tolist() == [
        [CLS, A, B, SEP, G, F, SEP, 0],
        [CLS, C, D, E, SEP, G, F, SEP],
        [CLS, SEP, G, F, SEP, 0, 0, 0],
        [CLS, B, SEP, G, F, SEP, 0, 0],
    ]
    assert found["token_type_ids"][1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert found["attention_mask"].sum(1).tolist() == [7, 8, 5, 6]


@pytest.mark.parametrize(("padding", "number"), [({"pad_id": 1, "pad_token": "<pad>"}, 1), (None, 3)])
def test_padding_is_the_tokenizers_own(tmp_path, padding, number):
    vocabulary = ["[CLS]", "<pad>", "[SEP]", "[PAD]", "[UNK]", "a", "b"] if padding is None else [*WORDS[2:], "<pad>"]
    found = everything(opened(sentences(written(tmp_path, vocabulary, padding), 5), tmp_path))
    assert found["input_ids"][2, 2:].tolist() == [number] * 3


def test_batches_of_sentences(words, tmp_path):
    records = opened(sentences(words), tmp_path)
    batch = Batches(records, batch_size=4, seed=0, transforms=(), rows=slice(4))[3]
    assert {field: (value.dtype.name, value.shape) for field, value in batch.items()} == {
        "input_ids": ("int32", (4, 5)),
        "attention_mask": ("int32", (4, 5)),
        "label": ("int32", (4,)),
        "label_probs": ("float32", (4, 2)),
        "rating": ("float32", (4,)),
        "mask": ("float32", (4,)),
        "index": ("int32", (4,)),
    }
    looks = describe_split("remarks", "train", tmp_path, "data", "train", sentences(words))
    assert looks.records == 4 and looks.classes == 2 and looks.vocabulary == 12
    assert looks.fields == {field: (value.shape[1:], value.dtype.name) for field, value in batch.items()}


# Documents


def test_documents_by_hand(words, tmp_path):
    found = everything(opened(documents(words), tmp_path, "stories"))
    assert {field: rows.tolist() for field, rows in found.items()} == {
        "input_ids": [[A, B, C, D], [E, F, G, A]],
        "label": [[B, C, 0, E], [F, G, 0, 0]],
        "mask": [[1, 1, 0, 1], [1, 1, 0, 0]],
        "segment_ids": [[1, 1, 1, 2], [1, 1, 1, 2]],
    }
    apart = everything(opened(documents(words, more=", pack=False, end='<end>'"), tmp_path, "stories"))
    assert {field: rows.tolist() for field, rows in apart.items()} == {
        "input_ids": [[A, B, C, 4], [D, E, F, G], [4, 0, 0, 0], [A, 4, 0, 0]],
        "label": [[B, C, 4, 0], [E, F, G, 4], [0, 0, 0, 0], [4, 0, 0, 0]],
        "mask": [[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]],
        "segment_ids": [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]],
    }
    assert sorted((about["cut"], about["tokens"]) for about in manifests(tmp_path)) == [(0, 8), (1, 11)]


def test_a_document_is_not_cut_by_the_truncation_of_its_tokenizer(words, tmp_path):
    cut = Tokenizer.from_file(str(words / "tokenizer.json"))
    cut.enable_truncation(2)
    (tmp_path / "cut").mkdir()
    cut.save(str(tmp_path / "cut" / "tokenizer.json"))
    whole, found = (everything(opened(documents(file), tmp_path, "stories")) for file in (words, tmp_path / "cut"))
    np.testing.assert_array_equal(found["input_ids"], whole["input_ids"])


def test_texts_that_are_empty_at_the_end_are_no_mistake(words, tmp_path, monkeypatch):
    @datasets.register
    def ending(split):
        return [{"text": "a b c d"}, {"text": "e f g"}, {"text": ""}, {"text": ""}]

    monkeypatch.setattr(token_cache, "CHUNK", 2)
    assert everything(opened(documents(words), tmp_path, "ending"))["input_ids"].size == 8


def test_the_mask_of_a_token_counts_where_its_row_does(words, tmp_path):
    records = opened(documents(words), tmp_path, "stories")
    batch = next(evaluation_batches(records, batch_size=4, rows=slice(4)))
    assert batch["mask"].tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert Batches(records, batch_size=2, seed=0, transforms=(), rows=slice(2))[0]["mask"].sum() == 5
    looks = describe_split("stories", "train", tmp_path, "data", "train", documents(words))
    assert looks.fields["mask"] == ((4,), "float32") and looks.classes is None and looks.vocabulary == 12


def test_the_unigram_model_by_hand(words, tmp_path):
    train, test = (opened(documents(words, length), tmp_path, "stories") for length in (4, 8))
    seen = {B: 1, C: 1, E: 1, F: 1, G: 1}  # how often each token is a label that counts
    expected = -sum(np.log((count + 0.5) / (5 + 0.5 * 12)) for count in seen.values()) / 5
    assert unigram_nll(train, test, 12, smoothing=0.5) == pytest.approx(expected)


# Once


def test_tokenised_once_and_mapped_from_files(words, tmp_path, monkeypatch):
    first = everything(opened(sentences(words), tmp_path))
    monkeypatch.setattr(tokenizer, "load", lambda file: pytest.fail("tokenised again"))
    again = opened(sentences(words), tmp_path)
    assert all(isinstance(column, np.memmap) for column in again._columns.values()) and again.in_memory
    assert all(np.array_equal(first[field], column) for field, column in everything(again).items())


def test_whatever_changes_the_rows_has_a_folder_of_its_own(words, tmp_path):
    other = written(tmp_path, [*WORDS, "h"])
    for name in ("remarks", "remarks(texts=('a', 'b'))", "remarks(texts=('a', 'c'))"):
        opened(sentences(words), tmp_path, name)
    for tokens in (sentences(words, 6), sentences(other), sentences(words, more=", fields=('other',)")):
        opened(tokens, tmp_path)
    opened(documents(words), tmp_path)
    opened(sentences(words, more=", fields=('text',)"), tmp_path)  # the default, spelt out
    opened(sentences(words / "tokenizer.json"), tmp_path)  # the same file
    assert len(manifests(tmp_path)) == 7
    assert not [entry for entry in (tmp_path / "tokens").iterdir() if not (entry / "manifest.json").exists()]


def test_a_prepared_set_is_not_read_where_its_arrays_are_there(words, tmp_path, monkeypatch):
    note = tmp_path / "theirs" / "1.0.0" / "dataset_info.json"
    note.parent.mkdir(parents=True)
    note.write_text("first")
    reads = []

    def plain(name, split, *_):
        reads.append((name, split))
        return token_cache.Records(remarks(split), 2)

    monkeypatch.setattr(jaxdistill.data.datasets, "_open_untokenised", plain)
    for _ in range(2):
        assert opened(sentences(words), tmp_path, "theirs").classes == 2
    assert reads == [("theirs", "train")]
    opened(sentences(words), tmp_path, "theirs", "train[:50%]")
    note.write_text("prepared anew")
    opened(sentences(words), tmp_path, "theirs")
    assert len(reads) == 3


def test_several_processes_may_tokenise_at_once(words, tmp_path, monkeypatch):
    rename = os.rename

    def slower(source, target):
        monkeypatch.undo()
        opened(sentences(words), tmp_path)  # stands for the other process
        rename(source, target)

    monkeypatch.setattr(os, "rename", slower)
    assert len(opened(sentences(words), tmp_path)) == 4
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_a_folder_that_cannot_be_written_costs_time_and_not_the_run(words, tmp_path, monkeypatch):
    (tmp_path / "tokens").write_text("a file in the way")
    monkeypatch.setattr(token_cache, "CHUNK", 3)
    records = opened(sentences(words), tmp_path)
    assert len(records) == 4 and records.vocabulary == 12 and records.classes == 2


def test_long_work_is_announced(words, tmp_path, monkeypatch, capfd):
    opened(sentences(words), tmp_path)
    assert "Tokenising" not in capfd.readouterr().err
    monkeypatch.setattr(token_cache, "CHUNK", 1)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(token_cache.time, "perf_counter", lambda: next(clock))
    opened(sentences(words, 7), tmp_path)
    assert capfd.readouterr().err.count("Tokenising 'remarks' (train) with") == 1


# Mistakes


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("sentence(tokenizer='x', length=4)", ["unknown tokenization 'sentence'", "Did you mean 'sentences'?"]),
        ("sentences(tokenizer='{words}')", ["length"]),
        ("sentences(tokenizer='{words}', length=0)", ["length=0", "give 1 to"]),
        ("sentences(tokenizer='{words}', length=2)", ["no room for text beside 2 special tokens"]),
        ("sentences(tokenizer='{words}', length=8, fields=('text', 'other', 'text'))", ["3 fields", "two for a pair"]),
        (
            "sentences(tokenizer='{words}', length=8, fields=('body',))",
            ["no text field 'body'; name one of text, other"],
        ),
        ("sentences(tokenizer='{words}', length=8, fields=('label',))", ["no text field 'label'"]),
        ("sentences(tokenizer='no/such/folder', length=8)", ["there is no 'no/such/folder'", "or a hub id"]),
        ("sentences(tokenizer='{empty}', length=8)", ["tokenizer.json'", "a folder that holds one"]),
        ("sentences(tokenizer='{broken}', length=8)", ["is not a tokenizer.json", "save_pretrained"]),
        ("documents(tokenizer='{words}', length=8, end='</s>')", ["no token '</s>'"]),
        ("documents(tokenizer='{words}', length=8, field='body')", ["no text field 'body'"]),
    ],
)
def test_a_mistake_names_path_value_and_cure(words, tmp_path, tokens, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{}")
    tokens = tokens.format(words=words, empty=tmp_path / "empty", broken=tmp_path / "broken.json")
    with pytest.raises(ConfigError) as error:
        opened(tokens, tmp_path)
    assert str(error.value).startswith("data.tokens: ")
    assert all(word in str(error.value) for word in said), str(error.value)


def test_numbers_are_no_text_and_damaged_tokens_are_made_again(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(datasets.factories, "remarks", lambda split: [{"label": 1}])
    with pytest.raises(ConfigError, match=r"no text field 'text'; choose another data set, or leave data.tokens empty"):
        opened(sentences(words), tmp_path)
    monkeypatch.undo()
    whole = everything(opened(sentences(words), tmp_path))
    for damaged in ("input_ids.npy", "manifest.json"):
        (file,) = tmp_path.glob(f"tokens/*/{damaged}")
        runs.flip(file, -10)
        again = everything(opened(sentences(words), tmp_path))
        assert all(np.array_equal(again[field], column) for field, column in whole.items())
        assert re.search(rf"note: .*{damaged} has changed .*; tokenising the texts again", capsys.readouterr().err)
    assert len(list(tmp_path.glob("tokens/*"))) == 1


def test_a_tokenizer_of_the_hub(words, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *what: asked.append(what) or str(words / "tokenizer.json")
    )
    assert len(opened(sentences(Path("someone/model")), tmp_path)) == 4
    assert asked == [("someone/model", "tokenizer.json")]

    def offline(*what):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ConfigError, match=r"data.tokens: .*'someone/model' is not a local folder.*no route to host"):
        opened(sentences(Path("someone/model")), tmp_path)


def test_a_full_disk_is_no_read_only_folder(words, tmp_path, monkeypatch):
    """Check that a full disk is an error, because keeping the tokens in memory instead could fill it."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_cache, "_write_cache", full)
    with pytest.raises(OSError, match="No space left"):
        opened(sentences(words), tmp_path)
