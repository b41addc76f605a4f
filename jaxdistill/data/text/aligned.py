"""Tokenise each text with two tokenizers and align the tokens: for a student whose teacher has another tokenizer.

The two token sequences of a document are divided into spans: the shortest runs of tokens that cover the same characters
in both. A span ends at every character position at which a token of both tokenizers ends. Rows hold whole spans, so
that at the end of each span both models have read the same text.

The algorithm has three steps, all linear in the number of tokens up to sorting: `span_sizes` counts the tokens of each
span of a document; `_edges` fills rows with spans until the student's or the teacher's row is full; `_fields` writes
the arrays of each model.
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
from jaxdistill.data.text.tokens import TEACHER, Columns, Tokenization, Tokenized, check_length, texts_of


class AlignedText(NamedTuple):
    """A document in the tokens of student and teacher.

    student, teacher: token ids, `[tokens]` each
    sizes: number of student and teacher tokens in each span, `[spans, 2]`; they add up to all tokens
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
    """Tokenise documents into rows with the student's and the teacher's tokenizer, for `uld` and `gold`.

    Gives the fields of `documents` in the student's tokens, and the same fields under `teacher/` in the teacher's
    tokens. The teacher reads the latter if `teachers.NAME.reads` is `teacher/`. `span` and `teacher/span`
    `[rows, length]` (int32) are the span of each predicted token, numbered from 1 in each row. 0 means no span: the
    token is not predicted, or the first token of its span is not predicted in this row.

    Alignment uses the character offsets of the tokenizers, so no span ends inside a character. Documents follow each
    other without a gap until the row of either model is full. A span that is longer than a row is left out, and the
    text after it becomes another document.

    Args:
        student: a folder with a tokenizer.json, the file itself, or an id of the Hugging Face hub.
        teacher: the same, for the teacher's tokenizer.
        length: the student's tokens per row.
        teacher_length: the teacher's tokens per row; 0: the same length.
        end: a token of the student after each document; empty: none.
        teacher_end: a token of the teacher after each document; empty: none.
        field: the text field of a record.

    Raises:
        ValueError: there is no such tokenizer, a length is below 1, or only one of `end` and `teacher_end` is given.
    """
    if bool(end) != bool(teacher_end):
        raise ValueError(f"end={end!r} and teacher_end={teacher_end!r}; name both, or none.")
    files = tokenizers.find(student), tokenizers.find(teacher)
    lengths = check_length(length), check_length(teacher_length or length)

    def encode(tokenizer: Any, chunks: Iterator[Columns]) -> Tokenized:
        pair = tokenizer, tokenizers.load(files[1])
        end_ids = [
            tokenizers.token_id(tok, token) for tok, token in zip(pair, (end, teacher_end), strict=True) if token
        ]
        for tok in pair:
            tok.no_padding()
            tok.no_truncation()
        documents: list[AlignedText] = []
        for records in chunks:
            texts = texts_of(records, field)
            encodings = zip(*(tok.encode_batch(texts, add_special_tokens=False) for tok in pair), strict=True)
            documents += [_align(ours, theirs, end_ids) for ours, theirs in encodings if ours.ids and theirs.ids]
        if not documents:
            cure = "choose other tokenizers or another field."
            raise ConfigError(PATH, f"the tokenizers find no token in the field {field!r} of any record; {cure}")
        columns, cut = pack_aligned(documents, *lengths)
        return Tokenized(columns, sum(len(document.student) for document in documents), cut)

    def shared() -> SharedVocabulary:
        student_tokenizer, teacher_tokenizer = (tokenizers.load(file) for file in files)
        return shared_tokens(student_tokenizer, teacher_tokenizer, [(end, teacher_end)] if end else [])

    spec = f"aligned {lengths} {end!r} {teacher_end!r} {field!r}"
    return Tokenization(files[0], spec, encode, labelled=False, others={TEACHER: files[1]}, shared=shared)


def _align(student: Any, teacher: Any, end_ids: Sequence[int]) -> AlignedText:
    """Align two encodings of one text; `end_ids` holds the end tokens of student and teacher, or nothing."""
    student_ids, teacher_ids = ([*tok.ids, *end_ids[n : n + 1]] for n, tok in enumerate((student, teacher)))
    sizes = span_sizes(np.array(student.offsets), np.array(teacher.offsets))
    sizes = np.append(sizes, [[1, 1]], axis=0) if end_ids else sizes
    return AlignedText(np.array(student_ids, np.int32), np.array(teacher_ids, np.int32), sizes)


def span_sizes(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Count the tokens of student and teacher in each span of a text, `[spans, 2]`.

    Spans end at the common cuts of both sequences. The last span has all remaining tokens of both; one of its two
    counts may be 0.

    Args:
        student: first character of each token, and the one after its last, `[tokens, 2]`.
        teacher: the same for the teacher's tokens.
    """
    student_cuts, teacher_cuts = _cuts(student), _cuts(teacher)
    _, i, j = np.intersect1d(student_cuts[0], teacher_cuts[0], assume_unique=True, return_indices=True)
    counts = np.stack([student_cuts[1][i], teacher_cuts[1][j]], axis=1)
    totals = np.array([[len(student), len(teacher)]])
    if not len(counts) or (counts[-1] != totals[0]).any():
        counts = np.concatenate([counts, totals])
    return np.diff(counts, axis=0, prepend=0)


def _cuts(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the character positions at which the text can be cut after a token, and the number of tokens before each.

    There is no cut between tokens that share a character. Tokens without characters (such as spaces that a tokenizer
    does not count) belong to the token before them.
    """
    begin, end = offsets[:, 0], np.maximum.accumulate(offsets[:, 1])
    cuttable = np.append((begin[1:] >= end[:-1]) & (end[1:] > end[:-1]), True)
    return end[cuttable], np.flatnonzero(cuttable) + 1


def pack_aligned(texts: Sequence[AlignedText], length: int, teacher_length: int) -> tuple[Columns, int]:
    """Pack documents into rows of whole spans; return the columns and the number of spans left out; see `aligned`."""
    sizes = np.concatenate([text.sizes for text in texts])
    document = np.repeat(np.arange(len(texts)), [len(text.sizes) for text in texts])
    too_long = (sizes > (length, teacher_length)).any(axis=1)
    document = np.unique(document * 2**32 + np.cumsum(too_long), return_inverse=True)[1]  # a new one after each gap
    tokens = [np.concatenate(ids) for ids in ([t.student for t in texts], [t.teacher for t in texts])]
    tokens = [ids[np.repeat(~too_long, size)] for ids, size in zip(tokens, sizes.T, strict=True)]
    sizes, document = sizes[~too_long], document[~too_long]
    edges = _edges(sizes, (length, teacher_length))
    row = np.repeat(np.arange(len(edges) - 1), np.diff(edges))  # of each span
    numbers = _span_numbers(sizes, document, row, edges)
    student, teacher = (
        _fields(ids, size, document, row, numbers, row_length)
        for ids, size, row_length in zip(tokens, sizes.T, (length, teacher_length), strict=True)
    )
    return {**student, **{f"{TEACHER}{name}": x for name, x in teacher.items()}}, int(too_long.sum())


def _edges(sizes: np.ndarray, lengths: tuple[int, int]) -> list[int]:
    """Return the first span of each row, followed by the number of spans. Each row takes as many spans as fit."""
    until = np.cumsum(sizes, axis=0)
    edges = [0]
    while edges[-1] < len(sizes):
        before = until[edges[-1] - 1] if edges[-1] else np.zeros(2, int)
        edges.append(min(int(np.searchsorted(until[:, n], before[n] + lengths[n], "right")) for n in (0, 1)))
    return edges


def _span_numbers(sizes: np.ndarray, document: np.ndarray, row: np.ndarray, edges: list[int]) -> np.ndarray:
    """Number the spans in each row, `[spans]`.

    A span gets 0 if one model has no token in it, or cannot predict its first token because no token of the same
    document precedes it in the row.
    """
    start = np.asarray(edges)[row]
    until = np.cumsum(sizes, axis=0) - sizes
    preceding = until - until[np.maximum(start, np.searchsorted(document, document))]  # same document, same row
    return np.where(((preceding > 0) & (sizes > 0)).all(axis=1), np.arange(len(sizes)) - start, 0)


def _fields(
    tokens: np.ndarray, sizes: np.ndarray, document: np.ndarray, row: np.ndarray, numbers: np.ndarray, length: int
) -> Columns:
    """Write the fields of one model, `[rows, length]`.

    Args:
        tokens: all token ids of the model, `[tokens]`.
        sizes: tokens of the model in each span, `[spans]`.
        document: of each span, `[spans]`.
        row: of each span, `[spans]`.
        numbers: of each span in its row, `[spans]`; see `_span_numbers`.
        length: tokens per row.
    """
    span_of = np.repeat(np.arange(len(sizes)), sizes)  # of each token
    rows = row[span_of]
    count = np.bincount(rows, minlength=row[-1] + 1)
    place = np.arange(len(tokens)) - np.repeat(np.cumsum(count) - count, count)
    predicted = np.append(document[span_of][1:] == document[span_of][:-1], False)  # the next token is in the document
    in_row = predicted & np.append(rows[1:] == rows[:-1], False)  # and in the same row
    label = np.where(predicted, np.append(tokens[1:], 0), 0)
    span = np.where(in_row, np.append(numbers[span_of][1:], 0), 0)
    segment = document[span_of] - document[span_of][np.searchsorted(rows, rows)] + 1

    def to_rows(values: np.ndarray, dtype: Any) -> np.ndarray:
        padded = np.zeros((len(count), length), dtype)
        padded[rows, place] = values
        return padded

    fields = {"input_ids": tokens, "label": label, "segment_ids": segment, "span": span}
    return {name: to_rows(x, np.int32) for name, x in fields.items()} | {"mask": to_rows(predicted, np.float32)}
