"""Find the tokens that two vocabularies share, by comparing their texts as bytes.

Tokenizers spell the same text differently: GPT-2's byte-level BPE maps bytes to printable characters; SentencePiece
writes a space as the character U+2581 and a byte as <0x0A>; WordPiece marks continuations with ## and omits the space
before a word. Each token is therefore decoded to bytes first. If a tokenizer normalises text, its tokens have the
normalised text: for a lower-case tokenizer, "the" also stands for "The".
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.data.text import tokenizer as tokenizers

SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that GPT-2's alphabet does not change
HIDDEN = [byte for byte in range(256) if byte not in SHOWN]
BYTES = {chr(byte): byte for byte in SHOWN} | {chr(256 + number): byte for number, byte in enumerate(HIDDEN)}

BYTE = re.compile("<0x([0-9A-F]{2})>")


def shared_tokens(student: Any, teacher: Any, pairs: Iterable[tuple[str, str]] = ()) -> SharedVocabulary:
    """Find the tokens that the vocabularies of two tokenizers share, as pairs of token ids with the same text.

    Args:
        student, teacher: tokenizers of the library `tokenizers`.
        pairs: further pairs (student token, teacher token) that have the same meaning but no text, such as the tokens
            that end a document.

    Raises:
        ConfigError: a tokenizer lacks a token of `pairs`.
    """
    student_ids, teacher_ids = ids_by_text(student), ids_by_text(teacher)
    paired = {tokenizers.token_id(student, a): tokenizers.token_id(teacher, b) for a, b in pairs}
    paired_teacher_ids = set(paired.values())
    shared = {
        number: teacher_ids[text]
        for text, number in student_ids.items()
        if text in teacher_ids and teacher_ids[text] not in paired_teacher_ids
    }
    ids = sorted((shared | paired).items())
    return SharedVocabulary(*np.array(ids, np.int32).reshape(-1, 2).T)


def ids_by_text(tokenizer: Any) -> dict[bytes | str, int]:
    """Return a dict `{text: id}` of the tokens of a tokenizer, whose keys are the texts of the tokens as bytes.

    Tokens that were added to the vocabulary, such as [CLS], are listed by name, as a string. If several tokens have the
    same text, only the first one is listed.
    """
    content = json.loads(tokenizer.to_str())
    added = {entry["content"] for entry in content.get("added_tokens", ())}
    to_bytes = _decoder(content)
    ids: dict[bytes | str, int] = {}
    # A byte is spelt <0x20> only if no other token has the same text. So such tokens come last.
    order = lambda item: (bool(BYTE.fullmatch(item[0])), item[1])
    for token, number in sorted(tokenizer.get_vocab().items(), key=order):
        ids.setdefault(token if token in added else to_bytes(token), number)
    return ids


def _decoder(content: dict[str, Any]) -> Any:
    """Return the function that decodes a token of a tokenizer to bytes; `content` is that of its tokenizer.json."""
    parts = json.dumps([content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    prefix = content["model"].get("continuing_subword_prefix")
    if '"ByteLevel"' in parts:
        return lambda token: bytes(BYTES[c] for c in token) if set(token) <= BYTES.keys() else token.encode()
    if "▁" in parts:
        return _decode_sentencepiece
    if content["model"]["type"] == "WordPiece":
        return lambda token: token[len(prefix) :].encode() if token.startswith(prefix) else b" " + token.encode()
    return str.encode


def _decode_sentencepiece(token: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
