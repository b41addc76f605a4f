"""Tokenise the texts of a data set into rows, which are token sequences of one length.

Since all rows have one length, a run compiles once: sentences are truncated or padded here, documents are packed in
documents.py. The rows are cached on disk, see token_cache.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.fields import TEACHER
from jaxdistill.core.registry import tokenizations
from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.data.text.tokenizer import PATH

Columns = dict[str, np.ndarray]
LONGEST = 2**24  # tokens of a row


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
    others: the tokenizer.json of each teacher with fields of its own, for another tokenizer or other texts, by the
        prefix of these fields
    row_bytes: bytes of all arrays for the row of one example; 0 if a row is packed from several examples
    texts: fields of an example that hold its texts
    serving: spec string (a registered name with arguments, as text) of the tokenization for inference with the trained
        model, where `tokenizer='.'` stands for the student's tokenizer; empty if the tokenization defines none
    shared: function without arguments that returns the tokens which the vocabularies of student and teacher share; None
        if the tokenization does not align the tokens of two tokenizers
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

    @property
    def own_fields(self) -> list[str]:
        """Return the names of the fields that hold token ids of the student's tokenizer, as a list.

        The first is `input_ids`. Another, such as `teacher/input_ids`, follows if it holds ids of the same tokenizer.
        """
        same = [prefix for prefix, file in self.others.items() if file == self.file]
        return [f"{prefix}input_ids" for prefix in ("", *same)]


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
    prefix `teacher/`; set the config key `teachers.NAME.reads` to `teacher/`, so that the teacher reads these fields.
    In this way, a student can learn a language that its teacher does not know, from texts and their translations:
    Reimers and Gurevych, 2020 (arxiv.org/abs/2004.09813).

    Args:
        tokenizer: a folder with a tokenizer.json, the file itself, or an id of the Hugging Face hub.
        length: tokens per row; longer texts are truncated, and shorter ones padded.
        fields: the fields of the data set that hold texts: one, or two for a pair.
        teacher: the teacher's tokenizer, given like `tokenizer`; empty if the teacher uses the student's tokenizer.
        teacher_length: the teacher's tokens per row; 0 means the same as `length`.
        teacher_fields: the fields that the teacher reads, such as the English text; if empty, the same as `fields`.

    Raises:
        ValueError: there is no such tokenizer, a length is below 1, or there are not one or two fields.
    """
    file, by_prefix = tokenizers.find(tokenizer), {"": fields}
    others = {TEACHER: tokenizers.find(teacher) if teacher else file} if teacher or teacher_fields else {}
    by_prefix |= dict.fromkeys(others, teacher_fields or fields)
    for names in by_prefix.values():
        if len(names) not in (1, 2):
            raise ValueError(f"{len(names)} fields; name one text, or two for a pair.")
    typed = any(len(names) == 2 for names in by_prefix.values())  # all readers, or none, have token types
    check_length(length)
    lengths = {"": length} | dict.fromkeys(others, check_length(teacher_length or length, "teacher_length"))

    def encode(tokenizer: Any, chunks: Iterator[Columns]) -> Iterator[Tokenized]:
        toks = {"": tokenizer} | {prefix: tokenizers.load(file) for prefix, file in others.items()}
        pads = {prefix: _set_length(tok, lengths[prefix], len(by_prefix[prefix]) == 2) for prefix, tok in toks.items()}
        for records in chunks:
            part, cut = _other_fields(records), 0
            for prefix, tok in toks.items():
                texts = [texts_of(records, field) for field in by_prefix[prefix]]
                encodings = tokenizers.encode(tok, texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
                cut += sum(bool(encoding.overflowing) for encoding in encodings) if not prefix else 0
                padded = _padded(encodings, lengths[prefix], pads[prefix], typed)
                part |= {f"{prefix}{field}": values for field, values in padded.items()}
            yield Tokenized(part, int(part["attention_mask"].sum()), cut)

    spec = f"sentences {length} {fields}" + (f" {lengths[TEACHER]}" if others else "")
    spec += f" {teacher_fields}" if teacher_fields else ""
    spec += " typed" if typed and len(fields) != len(teacher_fields or fields) else ""  # as an earlier version did not
    row_bytes = 4 * (2 + typed) * sum(lengths.values())
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


def joined(parts: Iterable[Tokenized]) -> Tokenized:
    """Concatenate the parts of tokenised texts in memory, and return them as one `Tokenized`."""
    every = list(parts)
    columns = {field: np.concatenate([part.columns[field] for part in every]) for field in every[0].columns}
    return Tokenized(columns, sum(part.tokens for part in every), sum(part.too_long for part in every))


def texts_of(records: Columns, field: str) -> list[str]:
    """Return the texts in one field of a chunk of examples (records), as a list of strings.

    Args:
        records: the examples, `{field: [records, ...]}`.
        field: name of the field.

    Raises:
        ConfigError: the examples have no such text field, or a text is not UTF-8.
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


def _padded(encodings: Sequence[Any], length: int, padding: int, typed: bool) -> Columns:
    ids = np.full((len(encodings), length), padding, np.int32)
    real, types = np.zeros_like(ids), np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        size = len(encoding.ids)
        ids[row, :size], real[row, :size], types[row, :size] = encoding.ids, 1, encoding.type_ids
    return {"input_ids": ids, "attention_mask": real, **({"token_type_ids": types} if typed else {})}


def check_length(length: int, name: str = "length") -> int:
    """Require that the length of a row (the number of tokens in a sequence) is allowed, and return this length.

    Args:
        length: number of tokens.
        name: name of the argument, for the error message.

    Raises:
        ValueError: the length is below 1 or above `LONGEST`.
    """
    if not 1 <= length <= LONGEST:
        raise ValueError(f"{name}={length}; give 1 to {LONGEST}.")
    return length
