"""One text in the tokens of two models, and where they meet: for a student whose teacher has another tokenizer.

Both are cut into spans, which end where a token of both ends. Rows hold whole spans, so that both models have read the
same text at the end of each.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import tokenizations
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.data.text.surfaces import shared_tokens
from jaxdistill.data.text.tokenizer import PATH
from jaxdistill.data.text.tokens import TEACHER, Columns, Tokenization, Tokenized, positive, texts_of


class Text(NamedTuple):
    """A document in the tokens of both.

    student, teacher: token numbers, `[tokens]` each
    sizes: how many tokens of each are in a span, `[spans, 2]`; they add up to both
    """

    student: np.ndarray
    teacher: np.ndarray
    sizes: np.ndarray


@tokenizations.register
def aligned(
    student: str,
    teacher: str,
    length: int,
    teacher_length: int = 0,
    end: str = "",
    teacher_end: str = "",
    field: str = "text",
) -> Tokenization:
    """Rows of running text in the tokens of a student and of a teacher, for `uld` and `gold`.

    Gives what `documents` gives, in the student's tokens, and the same under `teacher/` in the teacher's, which reads
    them if `teachers.NAME.reads` is `teacher/`. `span` and `teacher/span` `[rows, length]` (int32) say to which span of
    the text a predicted token belongs, counted from 1 in each row; 0: to none, or to one whose first token is not
    predicted in this row.

    Places are those of characters, as the tokenizers tell them, so that no span ends inside a character. Documents
    follow each other without a gap until either row is full; a span that is longer than a row is left out, and the
    text goes on as another document.

    Args:
        student: a folder with a tokenizer.json, the file itself, or an id of the Hugging Face hub.
        teacher: the same of the teacher.
        length: the student's tokens of a row.
        teacher_length: the teacher's; 0: as many.
        end: a token of the student's behind each document; empty: none.
        teacher_end: the same of the teacher's.
        field: which of a record's texts.

    Raises:
        ValueError: no such tokenizer, no length, or an end for one of them only.
    """
    if bool(end) != bool(teacher_end):
        raise ValueError(f"end={end!r} and teacher_end={teacher_end!r}; name both, or none.")
    files = tokenizers.find(student), tokenizers.find(teacher)
    lengths = positive(length), positive(teacher_length or length)

    def encode(tokenizer: Any, pieces: Iterator[Columns]) -> Tokenized:
        pair = tokenizer, tokenizers.load(files[1])
        ending = [tokenizers.number(one, word) for one, word in zip(pair, (end, teacher_end), strict=True) if word]
        for one in pair:
            one.no_padding()
            one.no_truncation()
        found: list[Text] = []
        for records in pieces:
            texts = texts_of(records, field)
            both = zip(*(one.encode_batch(texts, add_special_tokens=False) for one in pair), strict=True)
            found += [_text(ours, theirs, ending) for ours, theirs in both if ours.ids and theirs.ids]
        if not found:
            raise ConfigError(PATH, f"the tokenizers find no token in any {field!r}; choose others.")
        columns, cut = rows_of(found, *lengths)
        return Tokenized(columns, sum(len(text.student) for text in found), cut)

    def shared() -> SharedVocabulary:
        ours, theirs = (tokenizers.load(file) for file in files)
        return shared_tokens(ours, theirs, [(end, teacher_end)] if end else [])

    spec = f"aligned {lengths} {end!r} {teacher_end!r} {field!r}"
    return Tokenization(files[0], spec, encode, labelled=False, others={TEACHER: files[1]}, shared=shared)


def _text(student: Any, teacher: Any, ending: Sequence[int]) -> Text:
    ours, theirs = ([*one.ids, *ending[n : n + 1]] for n, one in enumerate((student, teacher)))
    sizes = spans(np.array(student.offsets), np.array(teacher.offsets))
    sizes = np.append(sizes, [[1, 1]], axis=0) if ending else sizes
    return Text(np.array(ours, np.int32), np.array(theirs, np.int32), sizes)


def spans(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """How many tokens of each are in a span, `[spans, 2]`, from where tokens begin and end in the text, `[tokens, 2]`.

    The last one has whatever is left of both; one of them may have none.
    """
    ours, theirs = _cuts(student), _cuts(teacher)
    _, i, j = np.intersect1d(ours[0], theirs[0], assume_unique=True, return_indices=True)
    counts = np.stack([ours[1][i], theirs[1][j]], axis=1)
    whole = np.array([[len(student), len(teacher)]])
    if not len(counts) or (counts[-1] != whole[0]).any():
        counts = np.concatenate([counts, whole])
    return np.diff(counts, axis=0, prepend=0)


def _cuts(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the text can be cut behind a token, and how many tokens there are up to there.

    Not between tokens that share a character. Tokens without any text, as spaces may be that a tokenizer does not
    count, belong to the one before them.
    """
    begin, end = places[:, 0], np.maximum.accumulate(places[:, 1])
    between = np.append((begin[1:] >= end[:-1]) & (end[1:] > end[:-1]), True)
    return end[between], np.flatnonzero(between) + 1


def rows_of(texts: Sequence[Text], length: int, teacher_length: int) -> tuple[Columns, int]:
    """Documents as rows of whole spans, and how many spans were left out; see `aligned`."""
    sizes = np.concatenate([text.sizes for text in texts])
    document = np.repeat(np.arange(len(texts)), [len(text.sizes) for text in texts])
    long = (sizes > (length, teacher_length)).any(axis=1)
    document = np.unique(document * 2**32 + np.cumsum(long), return_inverse=True)[1]  # another one behind each gap
    tokens = [np.concatenate(each) for each in ([t.student for t in texts], [t.teacher for t in texts])]
    tokens = [x[np.repeat(~long, size)] for x, size in zip(tokens, sizes.T, strict=True)]
    sizes, document = sizes[~long], document[~long]
    edges = _edges(sizes, (length, teacher_length))
    row = np.repeat(np.arange(len(edges) - 1), np.diff(edges))  # of each span
    known = _known(sizes, document, row, edges)
    student, teacher = (
        _fields(x, size, document, row, known, wide)
        for x, size, wide in zip(tokens, sizes.T, (length, teacher_length), strict=True)
    )
    return {**student, **{f"{TEACHER}{name}": x for name, x in teacher.items()}}, int(long.sum())


def _edges(sizes: np.ndarray, lengths: tuple[int, int]) -> list[int]:
    """The first span of each row, and how many spans there are."""
    until = np.cumsum(sizes, axis=0)
    edges = [0]
    while edges[-1] < len(sizes):
        before = until[edges[-1] - 1] if edges[-1] else np.zeros(2, int)
        edges.append(min(int(np.searchsorted(until[:, n], before[n] + lengths[n], "right")) for n in (0, 1)))
    return edges


def _known(sizes: np.ndarray, document: np.ndarray, row: np.ndarray, edges: list[int]) -> np.ndarray:
    """The number of each span in its row; 0 for one that a model does not have, or whose first token none predicts."""
    start = np.asarray(edges)[row]
    until = np.cumsum(sizes, axis=0) - sizes
    before = until - until[np.maximum(start, np.searchsorted(document, document))]  # of its document, in its row
    return np.where(((before > 0) & (sizes > 0)).all(axis=1), np.arange(len(sizes)) - start, 0)


def _fields(
    tokens: np.ndarray, sizes: np.ndarray, document: np.ndarray, row: np.ndarray, number: np.ndarray, length: int
) -> Columns:
    """The fields of one model, `[rows, length]`, from its tokens and what is known of the spans."""
    of = np.repeat(np.arange(len(sizes)), sizes)  # each token's span
    rows = row[of]
    count = np.bincount(rows, minlength=row[-1] + 1)
    place = np.arange(len(tokens)) - np.repeat(np.cumsum(count) - count, count)
    follows = np.append(document[of][1:] == document[of][:-1], False)
    here = follows & np.append(rows[1:] == rows[:-1], False)
    label = np.where(follows, np.append(tokens[1:], 0), 0)
    span = np.where(here, np.append(number[of][1:], 0), 0)
    segment = document[of] - document[of][np.searchsorted(rows, rows)] + 1

    def filled(values: np.ndarray, dtype: Any) -> np.ndarray:
        whole = np.zeros((len(count), length), dtype)
        whole[rows, place] = values
        return whole

    found = {"input_ids": tokens, "label": label, "segment_ids": segment, "span": span}
    return {name: filled(x, np.int32) for name, x in found.items()} | {"mask": filled(follows, np.float32)}
