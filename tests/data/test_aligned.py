"""Tests of one text in two tokenizers: spans where both meet, tokens that both share, and packed rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from spelt import aligned, letters, stories, written
from tokenizers import Tokenizer, models

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import datasets
from jaxdistill.data import Batches, evaluation_batches, open_records
from jaxdistill.data.text import tokenizer
from jaxdistill.data.text.aligned import AlignedText, pack_aligned, span_sizes
from jaxdistill.data.text.surfaces import ids_by_text, shared_tokens


@pytest.fixture(autouse=True, scope="module")
def registered():
    for factory in (stories, letters):
        datasets.register(factory)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return written(tmp_path_factory.mktemp("tokenizers"))


def opened(tokens: str, folder: Path, name: str = "stories") -> dict[str, np.ndarray]:
    records = open_records(name, "train", folder, "data", "train", tokens)
    return records.take(np.arange(len(records)))


# Spans


def places(*ends: int) -> np.ndarray:
    return np.stack([(0, *ends[:-1]), ends], axis=1)


@pytest.mark.parametrize(
    ("student", "teacher", "sizes"),
    [
        (places(2, 3, 6), places(2, 3, 6), [(1, 1), (1, 1), (1, 1)]),
        (places(2, 3, 6), places(1, 2, 6), [(1, 2), (2, 1)]),
        (places(2, 4, 6), places(3, 5, 6), [(3, 3)]),
        (places(6), places(1, 2, 3, 4, 5, 6), [(1, 6)]),
        # A character of three bytes is three tokens, two, or one.
        (np.array([[0, 1], [0, 1], [0, 1], [1, 2]]), places(1, 2), [(3, 1), (1, 1)]),
        (np.array([[0, 1], [0, 1], [0, 1], [1, 2]]), np.array([[0, 1], [0, 1], [1, 2]]), [(3, 2), (1, 1)]),
        # A space may belong to the next word, to no token, or be a token without a place.
        (np.array([[0, 3], [3, 7]]), np.array([[0, 3], [4, 7]]), [(1, 1), (1, 1)]),
        (np.array([[0, 3], [3, 7]]), np.array([[0, 3], [3, 3], [4, 7]]), [(1, 2), (1, 1)]),
        # One tokenizer does not see the end of the text.
        (places(2, 3, 6), places(2, 3), [(1, 1), (1, 1), (1, 0)]),
        (places(2, 3, 6), places(2, 5), [(1, 1), (2, 1)]),
    ],
)
def test_spans_by_hand(student, teacher, sizes):
    assert span_sizes(student, teacher).tolist() == [list(size) for size in sizes]
    assert span_sizes(teacher, student).tolist() == [list(size)[::-1] for size in sizes]


def test_rows_by_hand():
    """Check the rows of two documents by hand, of 4 student tokens and 5 teacher tokens each."""
    ids = lambda *numbers: np.array(numbers, np.int32)
    first = AlignedText(ids(1, 2, 3, 4, 5), ids(11, 12, 13, 14, 15, 16), np.array([(1, 1), (1, 2), (2, 2), (1, 1)]))
    second = AlignedText(ids(6, 7), ids(17), np.array([(1, 1), (1, 0)]))
    columns, cut = pack_aligned([first, second], 4, 5)
    assert cut == 0 and {field: rows.tolist() for field, rows in columns.items()} == {
        "input_ids": [[1, 2, 3, 4], [5, 6, 7, 0]],
        "label": [[2, 3, 4, 5], [0, 7, 0, 0]],
        "mask": [[1, 1, 1, 1], [0, 1, 0, 0]],
        "segment_ids": [[1, 1, 1, 1], [1, 2, 2, 0]],
        "span": [[1, 2, 2, 0], [0, 0, 0, 0]],  # no token predicts the first span of a row
        "teacher/input_ids": [[11, 12, 13, 14, 15], [16, 17, 0, 0, 0]],
        "teacher/label": [[12, 13, 14, 15, 16], [0, 0, 0, 0, 0]],
        "teacher/mask": [[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]],
        "teacher/segment_ids": [[1, 1, 1, 1, 1], [1, 2, 0, 0, 0]],
        "teacher/span": [[1, 1, 2, 2, 0], [0, 0, 0, 0, 0]],
    }
    assert {rows.dtype.name for name, rows in columns.items() if "mask" not in name} == {"int32"}


def test_a_span_longer_than_a_row_is_left_out_and_the_text_goes_on_as_another():
    ids = np.arange(1, 8, dtype=np.int32)
    columns, cut = pack_aligned([AlignedText(ids, ids, np.array([(1, 1), (1, 1), (3, 3), (1, 1), (1, 1)]))], 2, 9)
    assert cut == 1
    assert columns["input_ids"].tolist() == [[1, 2], [6, 7]] and columns["mask"].tolist() == [[1, 0], [1, 0]]
    assert columns["span"].tolist() == columns["teacher/span"][:, :2].tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_rows_lose_nothing_and_both_have_read_the_same_at_the_end_of_a_span(seed):
    rng = np.random.default_rng(seed)
    sizes = [rng.integers(0, 4, (rng.integers(1, 20), 2)) for _ in range(30)]
    sizes = [size for size in sizes if (size.sum(0) > 0).all()]
    draw = lambda count: rng.integers(1, 99, count, dtype=np.int32)
    texts = [AlignedText(draw(size[:, 0].sum()), draw(size[:, 1].sum()), size) for size in sizes]
    columns, cut = pack_aligned(texts, 9, 7)
    assert cut == 0
    ends = {}
    for prefix, whole in (("", [t.student for t in texts]), ("teacher/", [t.teacher for t in texts])):
        field = lambda name, p=prefix: columns[f"{p}{name}"]
        real, counts = field("segment_ids") > 0, field("mask") > 0
        assert np.array_equal(field("input_ids")[real], np.concatenate(whole))
        assert np.array_equal(field("label")[counts], np.concatenate([text[1:] for text in whole]))
        assert not field("span")[~counts].any()
        span = field("span")
        last = (span > 0) & (span != np.pad(span, ((0, 0), (0, 1)))[:, 1:])
        read = np.cumsum(real.ravel()).reshape(real.shape) + 1  # tokens up to the predicted one
        ends[prefix] = {(row, span[row, i]): read[row, i] for row, i in zip(*np.nonzero(last), strict=True)}
    assert ends[""].keys() == ends["teacher/"].keys() and len(ends[""]) > 20
    flat = np.concatenate(sizes)
    meeting = {tuple(pair) for pair in np.cumsum(flat, axis=0).tolist()}
    assert {(ends[""][key], ends["teacher/"][key]) for key in ends[""]} <= meeting


# Shared tokens


def test_tokens_are_shared_by_their_text_and_not_by_their_spelling(folders):
    load = lambda name: tokenizer.load(folders[name] / "tokenizer.json")
    few, many, pieces = load("few"), load("many"), load("pieces")
    assert ids_by_text(few)[b" "] == few.token_to_id("Ġ") and ids_by_text(pieces)[b" "] == pieces.token_to_id("▁")
    assert ids_by_text(pieces)["\u00e9".encode()[:1]] == pieces.token_to_id("<0xC3>")
    ours, theirs = shared_tokens(few, many), shared_tokens(many, few)
    assert len(ours.student) == len(set(ours.teacher.tolist())) >= 257  # 256 bytes, the end, and merges
    assert sorted(zip(*ours, strict=True)) == sorted(zip(*theirs[::-1], strict=True))
    both = dict(zip(*shared_tokens(many, pieces), strict=True))
    the = ids_by_text(many)[b" the"]
    assert pieces.id_to_token(int(both[the])) == "▁the" and "<end>" not in ids_by_text(pieces)
    assert many.token_to_id("<end>") not in both
    ended = dict(zip(*shared_tokens(many, pieces, [("<end>", "</s>")]), strict=True))
    assert ended == both | {many.token_to_id("<end>"): pieces.token_to_id("</s>")}


def test_what_begins_a_word_in_wordpiece_has_a_space_before_it():
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "he": 1, "##he": 2, "the": 3}, unk_token="[UNK]"))
    assert ids_by_text(made) == {b" [UNK]": 0, b" he": 1, b"he": 2, b" the": 3}
    made.add_special_tokens(["[UNK]"])
    assert ids_by_text(made)["[UNK]"] == 0
    plain = Tokenizer(models.WordLevel({"he": 5, "one": 1}, unk_token="one"))
    shared = shared_tokens(plain, made)
    assert shared.student.tolist() == [5] and shared.teacher.tolist() == [2]


def test_the_same_tokenizer_shares_every_token(folders):
    shared = shared_tokens(*(tokenizer.load(folders["pieces"] / "tokenizer.json") for _ in range(2)))
    assert shared.student.tolist() == shared.teacher.tolist() and len(shared.student) > 270


# Tokenised


@pytest.mark.parametrize(("student", "teacher"), [("few", "many"), ("many", "pieces"), ("pieces", "few")])
def test_two_tokenizers_meet_where_their_texts_do(folders, tmp_path, student, teacher):
    """Check that at the end of every span, the tokens that the two models have read spell the same text."""
    found = opened(aligned(folders, student, teacher, 128), tmp_path)
    load = lambda name: tokenizer.load(folders[name] / "tokenizer.json")
    pair, singles, seen = (load(student), load(teacher)), 0, 0
    text = lambda which, ids: pair[which].decode([int(n) for n in ids], skip_special_tokens=False).replace("▁", " ")
    for row in range(len(found["span"])):
        ours, theirs = found["span"][row], found["teacher/span"][row]
        assert set(ours) == set(theirs)
        for number in sorted(set(ours) - {0}):
            i, j = (np.flatnonzero(x == number) for x in (ours, theirs))
            until = text(0, found["input_ids"][row, : i[-1] + 2]), text(1, found["teacher/input_ids"][row, : j[-1] + 2])
            assert until[0].strip() == until[1].strip()
            singles, seen = singles + (len(i) == len(j) == 1), seen + 1
    assert 3 < singles < seen


def test_of_one_tokenizer_every_span_is_one_token(folders, tmp_path):
    found = opened(aligned(folders, "pieces", "pieces"), tmp_path)
    for name in ("input_ids", "label", "mask", "segment_ids", "span"):
        assert np.array_equal(found[name], found[f"teacher/{name}"])
    inside = found["span"][found["mask"] > 0]
    assert (found["span"] > 0).sum() > 0.85 * len(inside)  # others begin a row, or are parts of a character


def test_ends_are_spans_of_their_own_and_files_are_told_apart(folders, tmp_path):
    tokens = aligned(folders, "many", "pieces", 64, ", end='<end>', teacher_end='</s>'")
    found = opened(tokens, tmp_path)
    load = lambda name: tokenizer.load(folders[name] / "tokenizer.json")
    ends = load("many").token_to_id("<end>"), load("pieces").token_to_id("</s>")
    ours = (found["label"] == ends[0]) & (found["span"] > 0)
    theirs = (found["teacher/label"] == ends[1]) & (found["teacher/span"] > 0)
    assert found["span"][ours].tolist() == found["teacher/span"][theirs].tolist() and ours.sum() == 4
    for other in (aligned(folders, "many", "few", 64), aligned(folders, "many", "pieces", 64), tokens):
        opened(other, tmp_path)
    assert len(list((tmp_path / "tokens").glob("*/teacher/span.npy"))) == 3


def test_rows_that_fill_up_a_batch_count_for_neither(folders, tmp_path):
    records = open_records("stories", "train", tmp_path, "data", "train", aligned(folders, "few", "many", 32))
    batch = list(evaluation_batches(records, batch_size=4, rows=slice(4)))[-1]
    left = (len(records) - 1) % 4 + 1
    assert batch["teacher/mask"][:left].any(1).all() and not batch["teacher/mask"][left:].any()
    assert not batch["mask"][left:].any()
    drawn = Batches(records, batch_size=2, seed=0, transforms=(), rows=slice(2))[0]
    assert {"span", "teacher/span", "teacher/input_ids"} <= set(drawn)


def test_a_text_that_the_teacher_cuts_is_not_told_as_cut(folders, tmp_path):
    spec = f"sentences(tokenizer='{folders['words']}', length=30, teacher='{folders['pairs']}', teacher_length=1)"
    opened(spec, tmp_path, "letters(size=2)")
    (file,) = tmp_path.glob("tokens/*/manifest.json")
    assert json.loads(file.read_text())["cut"] == 0


def test_a_teacher_finds_its_own_sentences_beside_the_students(folders, tmp_path):
    spec = f"sentences(tokenizer='{folders['words']}', length=4, teacher='{folders['pairs']}', teacher_length=3)"
    found = opened(spec, tmp_path, "letters(size=2)")
    assert found["input_ids"].tolist() == [[2, 3, 4, 5], [3, 4, 5, 6]]
    assert found["teacher/input_ids"].tolist() == [[7, 4, 3], [5, 4, 3]]
    assert found["teacher/attention_mask"].all() and found["label"].tolist() == [0, 1]


def test_a_teacher_reads_other_texts_of_a_record(folders, tmp_path):
    @datasets.register
    def translated(split):
        return [{"text": "a b", "english": "b c d", "title": "a"}, {"text": "b", "english": "", "title": "c"}]

    spec = f"sentences(tokenizer='{folders['words']}', length=4, teacher_fields=('english',){{}})"
    found = opened(spec.format(""), tmp_path, "translated")
    alone = opened(f"sentences(tokenizer='{folders['words']}', length=4, fields=('english',))", tmp_path, "translated")
    assert np.array_equal(found["teacher/input_ids"], alone["input_ids"])
    assert found["input_ids"][:, 0].tolist() == [2, 3] and "teacher/token_type_ids" not in found
    pair = opened(spec.format(", teacher_length=3").replace("'english',", "'english', 'title'"), tmp_path, "translated")
    both = f"sentences(tokenizer='{folders['words']}', length=3, fields=('english', 'title'))"
    for field, values in opened(both, tmp_path, "translated").items():
        assert np.array_equal(pair[f"teacher/{field}"], values)
    assert np.array_equal(pair["input_ids"], found["input_ids"])
    two = spec.format("").replace(", teacher", ", fields=('text', 'title'), teacher")
    mixed = opened(two, tmp_path, "translated")  # else the teacher would read the student's types
    assert mixed["teacher/token_type_ids"].shape == mixed["token_type_ids"].shape == (2, 4)
    assert not mixed["teacher/token_type_ids"].any()
    keys = [registry.tokenizations.build(each, "").spec for each in (two, both, spec.format(""))]
    assert [key.endswith(" typed") for key in keys] == [
        True,
        False,
        False,
    ]  # an earlier version cached no types for two
    with pytest.raises(ConfigError, match=r"data\.tokens: .*no text field 'french'"):
        opened(spec.format("").replace("english", "french"), tmp_path, "translated")
    with pytest.raises(ConfigError, match=r"teacher_length=-1; give 1 to"):
        opened(spec.format(", teacher_length=-1"), tmp_path, "translated")
    with pytest.raises(ConfigError, match="3 fields; name one text, or two for a pair"):
        opened(spec.format("").replace("'english',", "'a', 'b', 'c'"), tmp_path, "translated")


# Mistakes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (", end='<stop>'", "name both, or none"),
        (", teacher_length=-1", "length=-1"),
        (", end='<none>', teacher_end='<halt>'", "no token '<none>'"),
        (", field='body'", "no text field 'body'"),
    ],
)
def test_a_mistake_names_path_value_and_cure(folders, tmp_path, more, said):
    with pytest.raises(ConfigError, match=f"data.tokens: .*{said}"):
        opened(aligned(folders, "words", "pairs", 8, more), tmp_path)
