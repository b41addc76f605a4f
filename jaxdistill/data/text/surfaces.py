"""Which tokens of two vocabularies are the same text, however each tokenizer spells it.

GPT-2's kind writes bytes as other characters, SentencePiece a space as ▁ and a byte as <0x0A>, WordPiece marks with ##
what goes on, and leaves out the space before what begins a word. As bytes they can be compared. A tokenizer that
changes the text has the tokens of what it makes of it: one of lower case alone has "the", and means "The" by it too.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxdistill.core.vocabulary import SharedVocabulary
from jaxdistill.data.text import tokenizer as tokenizers

SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that GPT-2's alphabet leaves as they are
HIDDEN = [byte for byte in range(256) if byte not in SHOWN]
BYTES = {chr(byte): byte for byte in SHOWN} | {chr(256 + number): byte for number, byte in enumerate(HIDDEN)}

BYTE = re.compile("<0x([0-9A-F]{2})>")


def shared_tokens(student: Any, teacher: Any, pairs: Iterable[tuple[str, str]] = ()) -> SharedVocabulary:
    """The tokens that two tokenizers share.

    Args:
        student, teacher: of the library `tokenizers`.
        pairs: (student's, teacher's) tokens that mean the same though they are no text, such as the end.

    Raises:
        ConfigError: a tokenizer has no such token.
    """
    one, other = surfaces(student), surfaces(teacher)
    named = {tokenizers.number(student, a): tokenizers.number(teacher, b) for a, b in pairs}
    taken = set(named.values())
    found = {number: other[text] for text, number in one.items() if text in other and other[text] not in taken}
    numbers = sorted((found | named).items())
    return SharedVocabulary(*np.array(numbers, np.int32).reshape(-1, 2).T)


def surfaces(tokenizer: Any) -> dict[bytes | str, int]:
    """The numbers of a tokenizer's tokens by their text in bytes; of added tokens, which are no text, by their name."""
    about = json.loads(tokenizer.to_str())
    added = {entry["content"] for entry in about.get("added_tokens", ())}
    spelt = _spelling(about)
    found: dict[bytes | str, int] = {}
    # a byte is only spelt as <0x20> where no token of its own says it: these come last
    order = lambda item: (bool(BYTE.fullmatch(item[0])), item[1])
    for token, number in sorted(tokenizer.get_vocab().items(), key=order):
        found.setdefault(token if token in added else spelt(token), number)
    return found


def _spelling(about: dict[str, Any]) -> Any:
    """The bytes of a token, by the content of a tokenizer.json."""
    parts = json.dumps([about.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    prefix = about["model"].get("continuing_subword_prefix")
    if '"ByteLevel"' in parts:
        return lambda token: bytes(BYTES[c] for c in token) if set(token) <= BYTES.keys() else token.encode()
    if "▁" in parts:
        return _sentencepiece
    if about["model"]["type"] == "WordPiece":
        return lambda token: token[len(prefix) :].encode() if token.startswith(prefix) else b" " + token.encode()
    return str.encode


def _sentencepiece(token: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
