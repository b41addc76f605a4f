"""Pack documents into rows of tokens for language models: the tokenization `documents`.

A row is a token sequence of one length; documents follow each other without a gap, and each token knows its document.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdistill.core.registry import tokenizations
from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.data.text.tokenizer import PATH
from jaxdistill.data.text.tokens import Columns, NoTokensError, Tokenization, Tokenized, check_length, texts_of


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
        end: a token to add after each document, such as `<|endoftext|>`; empty for none.
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
    """Return the spec string of the tokenization for inference with a trained language model.

    A spec string is a registered name with arguments, as text. Here it is `documents` without packing, so that each
    document begins a new row (token sequence).
    """
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
    """A packer that divides documents into rows (token sequences of one length) while documents are added.

    A row is complete when the token after it is known, because this token is the label of the last token of the row.

    Args:
        length: tokens per row.
        pack: if true, a row may hold several documents; otherwise each document begins a new row.
    """

    def __init__(self, length: int, pack: bool):
        self._length, self._pack, self._count = length, pack, 0
        self._tokens: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []  # number of the document of each token, from 1; 0: padding

    def add(self, texts: Sequence[np.ndarray]) -> None:
        """Add documents, each an array of token ids, `[tokens]` int32."""
        for text in texts:
            self._count += 1
            padding = (0, 0 if self._pack else -len(text) % self._length)
            self._tokens.append(np.pad(text, padding))
            self._documents.append(np.pad(np.full(len(text), self._count, np.int32), padding))

    def full_rows(self) -> Columns:
        """Remove the rows that are complete, of which there may be none, and return them, `{field: [rows, length]}`."""
        tokens, documents = self._flat()
        end = max(0, (len(tokens) - 1) // self._length * self._length)  # the last token's label is not known yet
        self._tokens, self._documents = [tokens[end:]], [documents[end:]]
        return _rows(tokens[: end + 1], documents[: end + 1], self._length) if end else _rows(*_NOTHING, self._length)

    def last_rows(self) -> Columns:
        """Return all remaining rows, `{field: [rows, length]}`; the last row is filled up with padding."""
        tokens, documents = self._flat()
        padding = (0, -len(tokens) % self._length + 1)  # one more token stands for what follows the last row
        return _rows(np.pad(tokens, padding), np.pad(documents, padding), self._length)

    def _flat(self) -> tuple[np.ndarray, np.ndarray]:
        empty = np.zeros(0, np.int32)
        return np.concatenate([empty, *self._tokens]), np.concatenate([empty, *self._documents])


_NOTHING = np.zeros(1, np.int32), np.zeros(1, np.int32)


def _rows(tokens: np.ndarray, documents: np.ndarray, length: int) -> Columns:
    """Divide the tokens of packed documents into rows, `{field: [rows, length]}`; see `documents` for the fields.

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
