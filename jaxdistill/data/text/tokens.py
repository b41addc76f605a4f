"""Text -> numbers: how a record's text becomes the rows of a batch.

Lengths are fixed, so that a run compiles once: sentences are cut or padded, documents packed. Done once and kept, see
token_cache.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
TEACHER = "teacher/"  # how the names of the fields begin that a teacher with a tokenizer of its own reads


class Tokenized(NamedTuple):
    """Texts as arrays.

    columns: `{field: [rows, ...]}`
    tokens: how many are real
    cut: how many texts did not fit into a row
    """

    columns: Columns
    tokens: int
    cut: int


class Tokenization(NamedTuple):
    """How the texts of a data set become arrays.

    file: the tokenizer.json
    spec: whatever else decides what comes out
    encode: `(tokenizer, records by pieces) -> Tokenized`
    labelled: whether a row is a record still, with its label
    others: tokenizers of what teachers read, by how the names of their fields begin
    shared: `() ->` the tokens that such a teacher shares with the student
    """

    file: Path
    spec: str
    encode: Callable[[Any, Iterator[Columns]], Tokenized]
    labelled: bool
    others: Mapping[str, Path] = MappingProxyType({})
    shared: Callable[[], SharedVocabulary] | None = None


@tokenizations.register
def sentences(
    tokenizer: str, length: int, fields: tuple[str, ...] = ("text",), teacher: str = "", teacher_length: int = 0
) -> Tokenization:
    """A row for each text, or each pair of texts, with the tokenizer's special tokens: for encoders.

    Gives `input_ids` and `attention_mask` `[rows, length]` (int32; 1 for a real token), of a pair `token_type_ids`
    too, and whatever else a record holds, such as `label` and `label_probs`. Of a pair, the longer text is cut first.
    A teacher with a tokenizer of its own finds the same fields under `teacher/` (`teachers.NAME.reads`).

    Args:
        tokenizer: a folder with a tokenizer.json, the file itself, or an id of the Hugging Face hub.
        length: tokens of a row; longer texts are cut, and shorter ones padded.
        fields: which of a record's texts: one, or two for a pair.
        teacher: as `tokenizer`, the teacher's; empty: the same one.
        teacher_length: the teacher's tokens of a row; 0: as many.

    Raises:
        ValueError: no such tokenizer, no length, or another number of fields.
    """
    if len(fields) not in (1, 2):
        raise ValueError(f"{len(fields)} fields; name one text, or two for a pair.")
    others = {TEACHER: tokenizers.find(teacher)} if teacher else {}
    lengths = {"": positive(length)} | dict.fromkeys(others, positive(teacher_length or length))

    def encode(tokenizer: Any, pieces: Iterator[Columns]) -> Tokenized:
        words = {"": tokenizer} | {prefix: tokenizers.load(file) for prefix, file in others.items()}
        filling = {prefix: _prepared(each, lengths[prefix], len(fields) == 2) for prefix, each in words.items()}
        parts, cut = [], 0
        for records in pieces:
            texts = [texts_of(records, field) for field in fields]
            part = _without_text(records)
            for prefix, each in words.items():
                encoded = each.encode_batch_fast(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
                cut += sum(bool(one.overflowing) for one in encoded) if not prefix else 0
                padded = _padded(encoded, lengths[prefix], filling[prefix], len(fields) == 2)
                part |= {f"{prefix}{field}": values for field, values in padded.items()}
            parts.append(part)
        columns = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
        return Tokenized(columns, int(columns["attention_mask"].sum()), cut)

    spec = f"sentences {length} {fields}" + (f" {lengths[TEACHER]}" if teacher else "")
    return Tokenization(tokenizers.find(tokenizer), spec, encode, labelled=True, others=others)


def _prepared(tokenizer: Any, length: int, pair: bool) -> int:
    """Makes a tokenizer cut texts to a length and leave them unpadded; returns what to fill them up with.

    Raises:
        ConfigError: nothing of a text would be left.
    """
    special = tokenizer.num_special_tokens_to_add(pair)
    if length <= special:
        raise ConfigError(PATH, f"a length of {length} leaves no room beside {special} special tokens; choose more.")
    padding = tokenizers.padding(tokenizer)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return padding


@tokenizations.register
def documents(tokenizer: str, length: int, pack: bool = True, end: str = "", field: str = "text") -> Tokenization:
    """Rows of running text, for language models: every token but the first of a document is predicted once.

    Gives, all `[rows, length]`: `input_ids` and `label` (the next token; int32), `mask` (float32; 1 where that label
    counts: never across documents, nor in padding) and `segment_ids` (int32; the documents of a row from 1 on, 0 for
    padding). Where a row is full, a document goes on in the next one. No special tokens are added but `end`.

    Args:
        tokenizer: a folder with a tokenizer.json, the file itself, or an id of the Hugging Face hub.
        length: tokens of a row.
        pack: documents follow each other without a gap; else each begins a row, and its last row is padded.
        end: a token behind each document, such as `<|endoftext|>`; empty: none.
        field: which of a record's texts.

    Raises:
        ValueError: no such tokenizer, or no length.
    """

    def encode(tokenizer: Any, pieces: Iterator[Columns]) -> Tokenized:
        ending = [tokenizers.number(tokenizer, end)] if end else []
        tokenizer.no_padding()
        tokenizer.no_truncation()
        found: list[np.ndarray] = []
        for records in pieces:
            encoded = tokenizer.encode_batch_fast(texts_of(records, field), add_special_tokens=False)
            found += [np.array([*one.ids, *ending], np.int32) for one in encoded if one.ids]
        if not found:
            raise ConfigError(PATH, f"the tokenizer finds no token in any {field!r}; choose another tokenizer.")
        sizes = [len(document) for document in found]
        return Tokenized(packed(found, length, pack), sum(sizes), sum(size > length for size in sizes))

    spec = f"documents {positive(length)} {pack} {end!r} {field!r}"
    return Tokenization(tokenizers.find(tokenizer), spec, encode, labelled=False)


def packed(texts: Sequence[np.ndarray], length: int, share: bool) -> Columns:
    """Documents `[tokens]`, none of them empty, as rows of one length with what comes next; see `documents`.

    Args:
        texts: int32.
        length: tokens of a row.
        share: whether a row may hold several documents.
    """
    filled = lambda flat: np.pad(flat, (0, -len(flat) % length))
    numbers = [np.full(len(text), count, np.int32) for count, text in enumerate(texts, 1)]
    if not share:
        texts, numbers = [filled(text) for text in texts], [filled(number) for number in numbers]
    tokens, number = filled(np.concatenate(texts)), filled(np.concatenate(numbers))
    counts = (number > 0) & (number == np.append(number[1:], 0))
    label = np.where(counts, np.append(tokens[1:], 0), 0).astype(np.int32)
    rows = {"input_ids": tokens, "label": label, "mask": counts.astype(np.float32), "segment_ids": number}
    rows = {field: flat.reshape(-1, length) for field, flat in rows.items()}
    number = rows["segment_ids"]
    return {**rows, "segment_ids": np.where(number > 0, number - number[:, :1] + 1, 0)}


def texts_of(records: Columns, field: str) -> list[str]:
    """The texts of a field.

    Raises:
        ConfigError: the records have none.
    """
    column = records.get(field)
    if column is None or not _is_text(column):
        texts = [name for name, values in records.items() if _is_text(values)]
        cure = f"name one of {', '.join(texts)}" if texts else "choose another data set, or leave data.tokens out"
        raise ConfigError(PATH, f"the records have no text {field!r}; {cure}.")
    return [text.decode() if isinstance(text, bytes) else text for text in column]


def _is_text(column: np.ndarray) -> bool:
    return isinstance(column[0], str | bytes)


def _without_text(records: Columns) -> Columns:
    others = {field: values for field, values in records.items() if not _is_text(values)}
    for field, values in others.items():
        if values.dtype == object:
            raise ConfigError(PATH, f"the shape of {field!r} differs from record to record; give it one shape.")
    return others


def _padded(encoded: Sequence[Any], length: int, padding: int, pair: bool) -> Columns:
    ids = np.full((len(encoded), length), padding, np.int32)
    real, types = np.zeros_like(ids), np.zeros_like(ids)
    for row, one in enumerate(encoded):
        size = len(one.ids)
        ids[row, :size], real[row, :size], types[row, :size] = one.ids, 1, one.type_ids
    return {"input_ids": ids, "attention_mask": real, **({"token_type_ids": types} if pair else {})}


def positive(length: int) -> int:
    """A length.

    Raises:
        ValueError: it is none.
    """
    if length < 1:
        raise ValueError(f"a length of {length}; give 1 or more.")
    return length
