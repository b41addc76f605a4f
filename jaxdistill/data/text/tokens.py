"""Tokenise the texts of a data set into rows, which are token sequences of one length.

Since all rows have one length, a run compiles once: sentences are truncated or padded, documents are packed. The rows
are cached on disk, see token_cache.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import tokenizations
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.data.text.tokenizer import PATH

Columns = dict[str, np.ndarray]
LONGEST = 2**24  # tokens of a row
TEACHER = "teacher/"  # prefix of the fields for a teacher with another tokenizer


class NoTokensError(ConfigError):
    """The error for texts in which the tokenizer finds no token at all."""


class Tokenized(NamedTuple):
    """A part of the tokenised texts of a data set, as arrays whose rows are token sequences of one length.

    columns: the arrays, `{field: [rows, ...]}`
    tokens: number of the student's tokens, without padding
    too_long: number of texts that are longer than a row; with the tokenization `aligned`, number of spans that are
        longer
    """

    columns: Columns
    tokens: int
    too_long: int


class Tokenization(NamedTuple):
    """A rule that converts the texts of a data set to arrays of tokens; a row of an array is one token sequence.

    file: path of the student's tokenizer.json
    spec: a text with all other settings that affect the result, for the key of the token cache
    encode: `(tokenizer, chunks of examples) -> parts`, tokenises all examples; each part is a `Tokenized`
    labelled: True if a row is one example and keeps its label; False if the label at each position is the next token
    others: the tokenizer.json of each teacher with another tokenizer, by the prefix of the fields that this teacher
        reads
    row_bytes: bytes of the arrays of one example's row; 0: rows are packed from several examples
    texts: fields of an example that hold its texts
    serving: spec string of the tokenization with which the trained model is used, where `tokenizer='.'` stands for the
        student's tokenizer; empty: it cannot be used
    shared: function without arguments that returns the tokens which the vocabularies of student and teacher share;
        None: the tokenization does not align the tokens of two tokenizers
    """

    file: Path
    spec: str
    encode: Callable[[Any, Iterator[Columns]], Iterator[Tokenized]]
    labelled: bool
    others: Mapping[str, Path] = MappingProxyType({})
    shared: Callable[[], SharedVocabulary] | None = None
    row_bytes: int = 0
    texts: tuple[str, ...] = ("text",)
    serving: str = ""


@tokenizations.register
def sentences(
    tokenizer: str,
    length: int,
    fields: tuple[str, ...] = ("text",),
    teacher: str = "",
    teacher_length: int = 0,
    teacher_fields: tuple[str, ...] = (),
) -> Tokenization:
    """Tokenise each text, or each pair of texts, with special tokens into one row of `length` tokens, for encoders.

    Adds `input_ids` and `attention_mask` `[rows, length]` (int32; 1 for a real token), and `token_type_ids` for pairs.
    Other fields of the data set, such as `label` and `label_probs`, are kept. A pair that is too long loses tokens of
    its longer text first. For a teacher with another tokenizer, or of other texts, the same fields are added with the
    prefix `teacher/`; set the config key `teachers.NAME.reads` to `teacher/`, so that the teacher reads these fields. A
    student can so learn a language that its teacher does not know, from texts and their translations: Reimers and
    Gurevych, 2020 (arxiv.org/abs/2004.09813).

    Args:
        tokenizer: a folder with a tokenizer.json, the file itself, or an id of the Hugging Face hub.
        length: tokens per row; longer texts are truncated, and shorter ones padded.
        fields: the fields of the data set that hold texts: one, or two for a pair.
        teacher: the teacher's tokenizer, given like `tokenizer`; empty: the teacher uses the student's tokenizer.
        teacher_length: the teacher's tokens per row; 0: the same as `length`.
        teacher_fields: the fields that the teacher reads, such as the English text; empty: the same as `fields`.

    Raises:
        ValueError: there is no such tokenizer, a length is below 1, or there are not one or two fields.
    """
    file, by_prefix = tokenizers.find(tokenizer), {"": fields}
    others = {TEACHER: tokenizers.find(teacher) if teacher else file} if teacher or teacher_fields else {}
    by_prefix |= dict.fromkeys(others, teacher_fields or fields)
    for names in by_prefix.values():
        if len(names) not in (1, 2):
            raise ValueError(f"{len(names)} fields; name one text, or two for a pair.")
    lengths = {"": check_length(length)} | dict.fromkeys(others, check_length(teacher_length or length))

    def encode(tokenizer: Any, chunks: Iterator[Columns]) -> Iterator[Tokenized]:
        toks = {"": tokenizer} | {prefix: tokenizers.load(file) for prefix, file in others.items()}
        pads = {prefix: _set_length(tok, lengths[prefix], len(by_prefix[prefix]) == 2) for prefix, tok in toks.items()}
        for records in chunks:
            part, cut = _other_fields(records), 0
            for prefix, tok in toks.items():
                texts = [texts_of(records, field) for field in by_prefix[prefix]]
                encodings = tokenizers.encode(tok, texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
                cut += sum(bool(encoding.overflowing) for encoding in encodings) if not prefix else 0
                padded = _padded(encodings, lengths[prefix], pads[prefix], len(texts) == 2)
                part |= {f"{prefix}{field}": values for field, values in padded.items()}
            yield Tokenized(part, int(part["attention_mask"].sum()), cut)

    spec = f"sentences {length} {fields}" + (f" {lengths[TEACHER]}" if others else "")
    spec += f" {teacher_fields}" if teacher_fields else ""
    row_bytes = sum(4 * (1 + len(names)) * lengths[prefix] for prefix, names in by_prefix.items())
    return Tokenization(
        file,
        spec,
        encode,
        labelled=True,
        others=others,
        row_bytes=row_bytes,
        texts=fields,
        serving=f"sentences(tokenizer='.', length={length}, fields={fields!r})",
    )


def _set_length(tokenizer: Any, length: int, pair: bool) -> int:
    """Set up a tokenizer to truncate texts without padding them; return the id of the padding token.

    Args:
        tokenizer: the tokenizer, a `tokenizers.Tokenizer`.
        length: largest number of tokens, including special tokens.
        pair: whether texts come in pairs.

    Raises:
        ConfigError: the special tokens leave no room for text.
    """
    special = tokenizer.num_special_tokens_to_add(pair)
    if length <= special:
        raise ConfigError(
            PATH, f"length={length} leaves no room for text beside {special} special tokens; choose more."
        )
    padding = tokenizers.padding_id(tokenizer)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return padding


@tokenizations.register
def documents(tokenizer: str, length: int, pack: bool = True, end: str = "", field: str = "text") -> Tokenization:
    """Tokenise documents into rows (token sequences of one length) for language models.

    The fields are `[rows, length]` each: `input_ids` and `label`, the next token (int32); `mask`, 1 where there is a
    next token of the same document, else 0 (float32); and `segment_ids`, which numbers the documents of a row from 1,
    and is 0 for padding (int32). If a row is full, the document continues in the next row, so each token of a document
    except the first is predicted exactly once. No special tokens are added except `end`.

    Args:
        tokenizer: a folder with a tokenizer.json, the file itself, or an id of the Hugging Face hub.
        length: tokens per row.
        pack: if true, documents follow each other without a gap; otherwise each document begins a new row, and the last
            row of each document is padded.
        end: a token to add after each document, such as `<|endoftext|>`; empty: none.
        field: the field of the data set that holds the text.

    Raises:
        ValueError: there is no such tokenizer, or `length` is below 1.
    """

    def encode(tokenizer: Any, chunks: Iterator[Columns]) -> Iterator[Tokenized]:
        end_ids = [tokenizers.token_id(tokenizer, end)] if end else []
        tokenizer.no_padding()
        tokenizer.no_truncation()
        packer, any_text = _Packer(length, pack), False
        for records in chunks:
            encodings = tokenizers.encode(tokenizer, texts_of(records, field), special=False)
            texts = [np.array([*encoding.ids, *end_ids], np.int32) for encoding in encodings if encoding.ids]
            packer.add(texts)
            sizes = [len(text) for text in texts]
            any_text = any_text or bool(texts)
            yield Tokenized(packer.full_rows(), sum(sizes), sum(size > length for size in sizes))
        if not any_text:
            cure = "choose another tokenizer or field."
            raise NoTokensError(PATH, f"the tokenizer finds no token in the field {field!r} of any record; {cure}")
        yield Tokenized(packer.last_rows(), 0, 0)

    spec = f"documents {check_length(length)} {pack} {end!r} {field!r}"
    row_bytes = 0 if pack else 16 * length
    return Tokenization(
        tokenizers.find(tokenizer),
        spec,
        encode,
        labelled=False,
        row_bytes=row_bytes,
        texts=(field,),
        serving=serving_documents(length, end, field),
    )


def serving_documents(length: int, end: str, field: str) -> str:
    """Return the spec string with which a language model is used: each document in rows of its own."""
    return f"documents(tokenizer='.', length={length}, pack=False, end={end!r}, field={field!r})"


def pack_documents(texts: Sequence[np.ndarray], length: int, pack: bool) -> Columns:
    """Divide tokenised documents into rows (token sequences of one length), `{field: [rows, length]}`.

    The fields are `input_ids`, `label`, `mask` and `segment_ids`; see `documents`.

    Args:
        texts: token ids of each document, `[tokens]` int32; no document is empty.
        length: tokens per row.
        pack: if true, a row may hold several documents; otherwise each document begins a new row.
    """
    packer = _Packer(length, pack)
    packer.add(texts)
    return packer.last_rows()


class _Packer:
    """Divides documents into rows as they come: a row is complete when the token after it is known.

    Args:
        length: tokens per row.
        pack: if true, a row may hold several documents; otherwise each document begins a new row.
    """

    def __init__(self, length: int, pack: bool):
        self._length, self._pack, self._count = length, pack, 0
        self._tokens: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []  # number of the document of each token, from 1; 0: padding

    def add(self, texts: Sequence[np.ndarray]) -> None:
        """Add documents, the token ids of each, `[tokens]` int32."""
        for text in texts:
            self._count += 1
            padding = (0, 0 if self._pack else -len(text) % self._length)
            self._tokens.append(np.pad(text, padding))
            self._documents.append(np.pad(np.full(len(text), self._count, np.int32), padding))

    def full_rows(self) -> Columns:
        """Return the rows that are complete, perhaps none, and forget them."""
        tokens, documents = self._flat()
        end = max(0, (len(tokens) - 1) // self._length * self._length)  # the last token's label is not known yet
        self._tokens, self._documents = [tokens[end:]], [documents[end:]]
        return _rows(tokens[: end + 1], documents[: end + 1], self._length) if end else _rows(*_NOTHING, self._length)

    def last_rows(self) -> Columns:
        """Return all remaining rows; the last one is filled up with padding."""
        tokens, documents = self._flat()
        padding = (0, -len(tokens) % self._length + 1)  # and one token that stands for what follows
        return _rows(np.pad(tokens, padding), np.pad(documents, padding), self._length)

    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        empty = np.zeros(0, np.int32)
        return np.concatenate([empty, *self._tokens]), np.concatenate([empty, *self._documents])


_NOTHING = np.zeros(1, np.int32), np.zeros(1, np.int32)


def _rows(tokens: np.ndarray, documents: np.ndarray, length: int) -> Columns:
    """Return the rows of a stream of tokens.

    Args:
        tokens: ids of the tokens of the rows, and of the token that follows, `[rows * length + 1]`.
        documents: number of the document of each of these tokens, 0 for padding.
        length: tokens per row.
    """
    document = documents[:-1]
    predicted = (document > 0) & (document == documents[1:])  # the next token is of the same document
    label = np.where(predicted, tokens[1:], 0).astype(np.int32)
    fields = {
        "input_ids": tokens[:-1],
        "label": label,
        "mask": predicted.astype(np.float32),
        "segment_ids": document,
    }
    rows = {field: flat.reshape(-1, length) for field, flat in fields.items()}
    document = rows["segment_ids"]
    return {**rows, "segment_ids": np.where(document > 0, document - document[:, :1] + 1, 0)}


def joined(parts: Iterable[Tokenized]) -> Tokenized:
    """Return the parts of tokenised texts as one, in memory."""
    every = list(parts)
    columns = {field: np.concatenate([part.columns[field] for part in every]) for field in every[0].columns}
    return Tokenized(columns, sum(part.tokens for part in every), sum(part.too_long for part in every))


def texts_of(records: Columns, field: str) -> list[str]:
    """Return the texts in one field of a chunk of examples (records).

    Args:
        records: the examples, `{field: [records, ...]}`.
        field: name of the field.

    Raises:
        ConfigError: the examples have no such text field.
    """
    column = records.get(field)
    if column is None or not _is_text(column):
        names = [name for name, values in records.items() if _is_text(values)]
        cure = f"name one of {', '.join(names)}" if names else "choose another data set, or leave data.tokens empty"
        raise ConfigError(PATH, f"the records have no text field {field!r}; {cure}.")
    try:
        return [text.decode() if isinstance(text, bytes) else text for text in column]
    except UnicodeDecodeError as error:
        raise ConfigError(PATH, f"a text in the field {field!r} is not UTF-8 ({error}); convert it.") from None


def _is_text(column: np.ndarray) -> bool:
    return isinstance(column[0], str | bytes)


def _other_fields(records: Columns) -> Columns:
    others = {field: values for field, values in records.items() if not _is_text(values)}
    for field, values in others.items():
        if values.dtype == object:
            raise ConfigError(PATH, f"the shape of {field!r} differs from record to record; give it one shape.")
    return others


def _padded(encodings: Sequence[Any], length: int, padding: int, pair: bool) -> Columns:
    ids = np.full((len(encodings), length), padding, np.int32)
    real, types = np.zeros_like(ids), np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        size = len(encoding.ids)
        ids[row, :size], real[row, :size], types[row, :size] = encoding.ids, 1, encoding.type_ids
    return {"input_ids": ids, "attention_mask": real, **({"token_type_ids": types} if pair else {})}


def check_length(length: int) -> int:
    """Return `length`, the number of tokens in a row (token sequence), if it is possible.

    Raises:
        ValueError: the length is below 1 or above `LONGEST`.
    """
    if not 1 <= length <= LONGEST:
        raise ValueError(f"length={length}; give 1 to {LONGEST}.")
    return length
