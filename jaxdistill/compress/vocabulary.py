"""Reduce a vocabulary to the tokens of a corpus, and its tokenizer to these tokens.

Texts of the corpus are cut into the same tokens as before, with new numbers: a tokenizer that searches greedily
(WordPiece) or by merges (byte pairs) finds all the tokens again. Other texts are cut into shorter tokens, or become
unknown.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("WordPiece", "BPE", "WordLevel")


def count_tokens(columns: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Count how often each token occurs in arrays of token numbers, `[size]`."""
    counts = np.zeros(size, np.int64)
    for column in columns:
        counts += np.bincount(np.asarray(column).ravel(), minlength=size)
    return counts


def select_tokens(tokenizer: dict[str, Any], counts: np.ndarray, most: int = 0) -> list[int]:
    """Select the tokens to keep, as numbers in rising order.

    Special and added tokens are always kept, as are tokens that others are made of: the single characters (or bytes) of
    the alphabet, and for byte pairs both halves of each merge.

    Args:
        tokenizer: the content of a tokenizer.json.
        counts: how often each token occurs.
        most: maximum number of tokens to keep, the most frequent first; 0: all that occur.

    Raises:
        ValueError: the tokenizer has another kind, or more tokens must be kept than `most`.
    """
    model = _model(tokenizer)
    numbers = model["vocab"]
    merges = {a + b: (a, b) for a, b in map(_halves, model.get("merges", ()))}
    required = {entry["id"] for entry in tokenizer.get("added_tokens", ())}
    if model.get("unk_token") in numbers:
        required.add(numbers[model["unk_token"]])
    if model["type"] != "WordLevel":
        prefix = model.get("continuing_subword_prefix") or ""
        required |= {number for token, number in numbers.items() if len(token.removeprefix(prefix)) == 1}
    tokens = {number: token for token, number in numbers.items()}
    selected = set(required)
    for number in sorted(np.flatnonzero(counts).tolist(), key=lambda n: (-counts[n], n)):
        added = _with_merge_parts(number, tokens, numbers, merges) - selected
        if not most or len(selected) + len(added) <= most:
            selected |= added
    if most and len(selected) > most:
        raise ValueError(f"{len(required)} tokens must be kept, more than {most}; raise most")
    return sorted(selected)


def _with_merge_parts(
    number: int, tokens: dict[int, str], numbers: dict[str, int], merges: dict[str, tuple[str, str]]
) -> set[int]:
    """Return a token and all tokens that it is merged from."""
    if number not in tokens or tokens[number] not in merges:
        return {number}
    first, second = merges[tokens[number]]
    return {number}.union(*(_with_merge_parts(numbers[half], tokens, numbers, merges) for half in (first, second)))


def _halves(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _model(tokenizer: dict[str, Any]) -> dict[str, Any]:
    model = tokenizer.get("model", {})
    if model.get("type") not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(f"a tokenizer of type {model.get('type')!r} cannot be reduced; supported types: {known}")
    return model


def reduce_tokenizer(tokenizer: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """Return a tokenizer with only the given tokens; the i-th of them gets the number i.

    Args:
        tokenizer: the content of a tokenizer.json.
        ids: from `select_tokens`.
    """
    new = {old: number for number, old in enumerate(ids)}
    reduced = copy.deepcopy(tokenizer)
    model = _model(reduced)
    model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if "merges" in model:
        is_kept = lambda merge: {*_halves(merge), "".join(_halves(merge))} <= model["vocab"].keys()
        model["merges"] = [merge for merge in model["merges"] if is_kept(merge)]
    for entry in reduced.get("added_tokens", ()):
        entry["id"] = new[entry["id"]]
    if reduced.get("padding"):
        reduced["padding"]["pad_id"] = new[reduced["padding"]["pad_id"]]
    _renumber(reduced.get("post_processor"), new)
    return reduced


def _renumber(node: Any, new: dict[int, int]) -> None:
    """Renumber the special tokens inside a post-processor: `ids` of a template, and (token, number) pairs."""
    if not isinstance(node, dict):
        return
    for each in node.get("processors", ()):
        _renumber(each, new)
    special = node.get("special_tokens")
    for entry in special.values() if isinstance(special, dict) else ():
        entry["ids"] = [new[number] for number in entry["ids"]]
    for name in ("sep", "cls"):
        if isinstance(node.get(name), list):
            token, number = node[name]
            node[name] = [token, new[number]]


def write(folder: Path, tokenizer: dict[str, Any], ids: Sequence[int], size: int) -> None:
    """Write `tokenizer.json`, and `vocabulary.json` for `pretrained(..., keep=FOLDER)`.

    Args:
        folder: the folder to write to.
        tokenizer: the content of the original tokenizer.json.
        ids: from `select_tokens`.
        size: of the original vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(reduce_tokenizer(tokenizer, ids), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "vocabulary.json").write_text(json.dumps({"ids": list(ids), "size": size}))
