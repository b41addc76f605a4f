"""A vocabulary cut to a corpus: the tokens that it uses, and a tokenizer of those alone.

Texts of the corpus come out as the same tokens under new numbers: what cuts them greedily (WordPiece) or by merges
(byte pairs) finds every piece that it found before. Other texts are spelt in smaller pieces, or as unknown.
"""

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("WordPiece", "BPE", "WordLevel")


def used(columns: Iterable[np.ndarray], size: int) -> np.ndarray:
    """How often each token occurs, `[size]`, in arrays of token numbers."""
    counts = np.zeros(size, np.int64)
    for column in columns:
        counts += np.bincount(np.asarray(column).ravel(), minlength=size)
    return counts


def kept(tokenizer: dict[str, Any], counts: np.ndarray, most: int = 0) -> list[int]:
    """The tokens to keep, by number in rising order.

    Special and added tokens stay, and whatever others are made from: the single characters (or bytes) of an alphabet,
    and of byte pairs each merge's halves.

    Args:
        tokenizer: the content of a tokenizer.json.
        counts: how often each token occurs.
        most: how many to keep at most, the more frequent first; 0: all that occur.

    Raises:
        ValueError: a tokenizer of another kind, or more tokens have to stay than `most`.
    """
    model = _model(tokenizer)
    numbers = model["vocab"]
    merged = {a + b: (a, b) for a, b in map(_halves, model.get("merges", ()))}
    stay = {entry["id"] for entry in tokenizer.get("added_tokens", ())}
    if model.get("unk_token") in numbers:
        stay.add(numbers[model["unk_token"]])
    if model["type"] != "WordLevel":
        prefix = model.get("continuing_subword_prefix") or ""
        stay |= {number for token, number in numbers.items() if len(token.removeprefix(prefix)) == 1}
    words = {number: token for token, number in numbers.items()}
    chosen = set(stay)
    for number in sorted(np.flatnonzero(counts).tolist(), key=lambda n: (-counts[n], n)):
        more = _parts(number, words, numbers, merged) - chosen
        if not most or len(chosen) + len(more) <= most:
            chosen |= more
    if most and len(chosen) > most:
        raise ValueError(f"{len(stay)} tokens have to stay, more than {most}")
    return sorted(chosen)


def _parts(number: int, words: dict[int, str], numbers: dict[str, int], merged: dict[str, tuple[str, str]]) -> set[int]:
    """A token and all that it is merged from."""
    if number not in words or words[number] not in merged:
        return {number}
    first, second = merged[words[number]]
    return {number}.union(*(_parts(numbers[half], words, numbers, merged) for half in (first, second)))


def _halves(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _model(tokenizer: dict[str, Any]) -> dict[str, Any]:
    model = tokenizer.get("model", {})
    if model.get("type") not in KINDS:
        raise ValueError(f"the tokenizer is {model.get('type')!r}; a vocabulary is cut of {', '.join(KINDS)}")
    return model


def reduced(tokenizer: dict[str, Any], ids: Sequence[int]) -> dict[str, Any]:
    """The tokenizer of these tokens alone, the i-th of them having number i.

    Args:
        tokenizer: the content of a tokenizer.json.
        ids: from `kept`.
    """
    new = {old: number for number, old in enumerate(ids)}
    found = copy.deepcopy(tokenizer)
    model = _model(found)
    model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if "merges" in model:
        whole = lambda merge: {*_halves(merge), "".join(_halves(merge))} <= model["vocab"].keys()
        model["merges"] = [merge for merge in model["merges"] if whole(merge)]
    for entry in found.get("added_tokens", ()):
        entry["id"] = new[entry["id"]]
    if found.get("padding"):
        found["padding"]["pad_id"] = new[found["padding"]["pad_id"]]
    _renumber(found.get("post_processor"), new)
    return found


def _renumber(node: Any, new: dict[int, int]) -> None:
    """Changes the numbers of special tokens inside a post-processor: `ids` of a template, (token, number) pairs."""
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
    """Writes `tokenizer.json`, and `vocabulary.json` for `pretrained(..., keep=FOLDER)`.

    Args:
        folder: to be written.
        tokenizer: the content of the whole tokenizer.json.
        ids: from `kept`.
        size: of the whole vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(reduced(tokenizer, ids), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "vocabulary.json").write_text(json.dumps({"ids": list(ids), "size": size}))
