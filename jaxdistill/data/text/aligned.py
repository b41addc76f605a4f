"""Tokenise each text with two tokenizers and align the tokens: for a student whose teacher has another tokenizer.

The two token sequences of a document are divided into spans: the shortest runs of tokens that cover the same characters
in both. A span ends at every character position at which a token of both tokenizers ends. The rows (token sequences) of
a batch hold whole spans, so that at the end of each span both models have read the same text.

The algorithm has three steps, all linear in the number of tokens up to sorting: `span_sizes` counts the tokens of each
span of a document; `_edges` fills rows with spans until the student's or the teacher's row is full; `_fields` writes
the arrays of each model.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.fields import TEACHER
from jaxdistill.core.registry import tokenizations
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.data.text.documents import serving_documents
from jaxdistill.data.text.surfaces import shared_tokens
from jaxdistill.data.text.tokenizer import PATH
from jaxdistill.data.text.tokens import (
    Columns,
    Tokenization,
    Tokenized,
    check_length,
    texts_of,
)


class AlignedText(NamedTuple):
    """A document as tokens of the student and of the teacher, divided into spans of the same text.

    student, teacher: token ids of the student's and of the teacher's tokenizer, `[tokens]` each
    sizes: number of student tokens and of teacher tokens in each span, `[spans, 2]`; a span is a shortest run of tokens
        that covers the same characters in both tokenizers. All tokens belong to a span
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
    """Tokenise documents with the student's and with the teacher's tokenizer, and align the tokens by spans of text.

    The losses `uld` and `gold`, between models with different tokenizers, need this alignment. A span is a shortest run
    of tokens that covers the same characters in both tokenizers; it never ends inside a character.

    Documents are packed into rows (token sequences of fixed length), without a gap until the row of either model is
    full. The fields `input_ids`, `label`, `mask` and `segment_ids` hold the student's tokens (see `documents`), and the
    same fields with the prefix `teacher/` hold the teacher's tokens. Set the config key `teachers.NAME.reads` to
    `teacher/`, so that the teacher reads the latter.

    The fields `span` `[rows, length]` and `teacher/span` `[rows, teacher_length]` (int32) give, for each position, the
    number of the span to which the predicted token belongs. Spans are numbered from 1 in each row. The number is 0 if
    no token is predicted, if the span has no token of the other model, or if the first token of the span is not
    predicted in this row. A span that is longer than a row is left out, and the text after this span becomes another
    document.

    Args:
        student: the student's tokenizer: a folder with a tokenizer.json, the file itself, or a Hugging Face hub id.
        teacher: the teacher's tokenizer, given in the same way.
        length: the student's tokens per row.
        teacher_length: the teacher's tokens per row; 0 means the same as `length`.
        end: a token of the student to add after each document; empty for none.
        teacher_end: a token of the teacher to add after each document; empty for none.
        field: the field of the data set that holds the text.

    Raises:
        ValueError: there is no such tokenizer, a length is below 1, or only one of `end` and `teacher_end` is given.
    """
    if bool(end) != bool(teacher_end):
        raise ValueError(f"end={end!r} and teacher_end={teacher_end!r}; name both, or none.")
    files = tokenizers.find(student), tokenizers.find(teacher)
    lengths = check_length(length), check_length(teacher_length or length, "teacher_length")

    def encode(tokenizer: Any, chunks: Iterator[Columns]) -> Iterator[Tokenized]:
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
            encodings = zip(*(tokenizers.encode(tok, texts, special=False, fast=False) for tok in pair), strict=True)
            documents += [_align(ours, theirs, end_ids) for ours, theirs in encodings if ours.ids and theirs.ids]
        if not documents:
            cure = "choose other tokenizers or another field."
            raise ConfigError(PATH, f"the tokenizers find no token in the field {field!r} of any record; {cure}")
        columns, cut = pack_aligned(documents, *lengths)
        yield Tokenized(columns, sum(len(document.student) for document in documents), cut)

    def shared() -> SharedVocabulary:
        student_tokenizer, teacher_tokenizer = (tokenizers.load(file) for file in files)
        return shared_tokens(student_tokenizer, teacher_tokenizer, [(end, teacher_end)] if end else [])

    spec = f"aligned {lengths} {end!r} {teacher_end!r} {field!r}"
    return Tokenization(
        files[0],
        spec,
        encode,
        labelled=False,
        others={TEACHER: files[1]},
        shared=shared,
        texts=(field,),
        serving=serving_documents(length, end, field),
    )


def _align(student: Any, teacher: Any, end_ids: Sequence[int]) -> AlignedText:
    """Align the tokens of two tokenizers on one text.

    Args:
        student: the text as encoded by the student's tokenizer, a `tokenizers.Encoding`.
        teacher: the text as encoded by the teacher's tokenizer.
        end_ids: ids of the student's and the teacher's token to add after the text; empty if none is added.
    """
    student_ids, teacher_ids = ([*tok.ids, *end_ids[n : n + 1]] for n, tok in enumerate((student, teacher)))
    sizes = span_sizes(np.array(student.offsets), np.array(teacher.offsets))
    sizes = np.append(sizes, [[1, 1]], axis=0) if end_ids else sizes
    return AlignedText(np.array(student_ids, np.int32), np.array(teacher_ids, np.int32), sizes)


def span_sizes(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Count the tokens of the student and of the teacher in each span of a text, `[spans, 2]`.

    A span ends at every character position at which a student token and a teacher token end. The last span has all
    remaining tokens of both models; one of its two counts may be 0.

    Args:
        student: character offsets of the student's tokens, `[tokens, 2]`: the first character of each token, and the
            one after its last character.
        teacher: character offsets of the teacher's tokens, `[tokens, 2]`.
    """
    (student_ends, student_counts), (teacher_ends, teacher_counts) = _token_ends(student), _token_ends(teacher)
    _, i, j = np.intersect1d(student_ends, teacher_ends, assume_unique=True, return_indices=True)
    counts = np.stack([student_counts[i], teacher_counts[j]], axis=1)
    totals = np.array([[len(student), len(teacher)]])
    if not len(counts) or (counts[-1] != totals[0]).any():
        counts = np.concatenate([counts, totals])
    return np.diff(counts, axis=0, prepend=0)


def _token_ends(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the character positions at which a token ends, and the number of tokens before each position.

    Tokens that share a character end together. Tokens without characters (such as spaces that a tokenizer does not
    count) belong to the token before them.

    Args:
        offsets: first character of each token, and the one after its last, `[tokens, 2]`.
    """
    begin, end = offsets[:, 0], np.maximum.accumulate(offsets[:, 1])
    is_end = np.append((begin[1:] >= end[:-1]) & (end[1:] > end[:-1]), True)
    return end[is_end], np.flatnonzero(is_end) + 1


def pack_aligned(texts: Sequence[AlignedText], length: int, teacher_length: int) -> tuple[Columns, int]:
    """Pack aligned documents into rows (token sequences of fixed length) that hold whole spans; see `aligned`.

    Args:
        texts: the documents.
        length: the student's tokens per row.
        teacher_length: the teacher's tokens per row.

    Returns:
        The arrays of both models, `{field: [rows, ...]}`, and the number of spans that were left out because they are
        longer than a row.
    """
    sizes = np.concatenate([text.sizes for text in texts])
    document = np.repeat(np.arange(len(texts)), [len(text.sizes) for text in texts])
    too_long = (sizes > (length, teacher_length)).any(axis=1)
    # a document that is cut begins anew after each gap
    document = np.unique(document * 2**32 + np.cumsum(too_long), return_inverse=True)[1]
    tokens = [np.concatenate(ids) for ids in ([t.student for t in texts], [t.teacher for t in texts])]
    tokens = [ids[np.repeat(~too_long, size)] for ids, size in zip(tokens, sizes.T, strict=True)]
    sizes, document = sizes[~too_long], document[~too_long]
    edges = _edges(sizes, (length, teacher_length))
    row = np.repeat(np.arange(len(edges) - 1), np.diff(edges))  # row of each span
    numbers = _span_numbers(sizes, document, row, edges)
    student, teacher = (
        _fields(ids, size, document, row, numbers, row_length)
        for ids, size, row_length in zip(tokens, sizes.T, (length, teacher_length), strict=True)
    )
    return {**student, **{f"{TEACHER}{name}": x for name, x in teacher.items()}}, int(too_long.sum())


def _edges(sizes: np.ndarray, lengths: tuple[int, int]) -> list[int]:
    """Return a list with the number of the first span in each row, followed by the number of all spans.

    A row (token sequence of fixed length) takes as many spans as fit for both models.

    Args:
        sizes: number of student tokens and of teacher tokens in each span, `[spans, 2]`.
        lengths: student tokens and teacher tokens per row.
    """
    until = np.cumsum(sizes, axis=0)
    edges = [0]
    while edges[-1] < len(sizes):
        before = until[edges[-1] - 1] if edges[-1] else np.zeros(2, int)
        edges.append(min(int(np.searchsorted(until[:, n], before[n] + lengths[n], "right")) for n in (0, 1)))
    return edges


def _span_numbers(sizes: np.ndarray, document: np.ndarray, row: np.ndarray, edges: list[int]) -> np.ndarray:
    """Number the spans in each row (token sequence of fixed length) from 1, `[spans]`; 0 marks a span without number.

    A span has no number if one of the models has no token in the span, or cannot predict the span's first token. A
    model cannot predict a token if no token of the same document precedes this token in the row.

    Args:
        sizes: number of student tokens and of teacher tokens in each span, `[spans, 2]`.
        document: number of each span's document, `[spans]`.
        row: number of each span's row, `[spans]`.
        edges: the first span of each row, see `_edges`.
    """
    start = np.asarray(edges)[row]
    until = np.cumsum(sizes, axis=0) - sizes
    begin = np.maximum(start, np.searchsorted(document, document))  # of the row or the document, whichever is later
    preceding = until - until[begin]
    return np.where(((preceding > 0) & (sizes > 0)).all(axis=1), np.arange(len(sizes)) - start, 0)


def _fields(
    tokens: np.ndarray, sizes: np.ndarray, document: np.ndarray, row: np.ndarray, numbers: np.ndarray, length: int
) -> Columns:
    """Compute the arrays that one model reads, `{field: [rows, length]}`.

    Args:
        tokens: all token ids of the model, `[tokens]`.
        sizes: number of the model's tokens in each span, `[spans]`.
        document: number of each span's document, `[spans]`.
        row: number of each span's row, `[spans]`.
        numbers: number of each span in its row, `[spans]`; see `_span_numbers`.
        length: tokens per row.
    """
    span_of = np.repeat(np.arange(len(sizes)), sizes)  # span of each token
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
