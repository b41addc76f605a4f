"""Reduce a vocabulary to the tokens of a corpus, and a tokenizer to this vocabulary.

The reduced tokenizer cuts the texts of the corpus into the same tokens as before, which have new numbers: a tokenizer
that searches greedily (WordPiece) or by merges (byte pairs) finds all these tokens again. It cuts other texts into
shorter tokens, or into unknown ones.
"""

import copy
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core import seal
from jaxdistill.models.hub.kept_tokens import VOCABULARY

VOCABULARY_FILES = (seal.FOLDER_SEAL, VOCABULARY, "tokenizer.json")  # in the order in which they are replaced

KINDS = ("WordPiece", "BPE", "WordLevel")


def count_tokens(columns: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Count how often each token of a vocabulary occurs in a corpus, `[size]`.

    Args:
        columns: arrays of token numbers, of any shape, that make up the corpus.
        size: number of tokens of the vocabulary.
    """
    counts = np.zeros(size, np.int64)
    for column in columns:
        counts += np.bincount(np.asarray(column).ravel(), minlength=size)
    return counts


def required_tokens(tokenizer: dict[str, Any]) -> set[int]:
    """Return the ids of the tokens that a reduced vocabulary must keep: added or special tokens and the unknown one.

    Args:
        tokenizer: the content of a tokenizer.json.
    """
    unknown = unknown_token(tokenizer)
    added = {entry["id"] for entry in tokenizer.get("added_tokens", ())}
    return added if unknown is None else added | {unknown}


def with_required_first(tokenizer: dict[str, Any], counts: np.ndarray) -> np.ndarray:
    """Raise the counts of the tokens that must be kept above all other counts, and return the new counts, `[size]`.

    Args:
        tokenizer: the content of a tokenizer.json.
        counts: how often each token occurs in the corpus, from `count_tokens`.
    """
    raised = counts.copy()
    raised[sorted(required_tokens(tokenizer))] += counts.sum() + 1
    return raised


def unknown_token(tokenizer: dict[str, Any]) -> int | None:
    """Return the number of the unknown token in the content of a tokenizer.json, or None if it has no such token."""
    model = tokenizer.get("model", {})
    if isinstance(model.get("vocab"), list):  # Unigram
        return model.get("unk_id")
    return model.get("vocab", {}).get(model.get("unk_token"))


def select_tokens(tokenizer: dict[str, Any], counts: np.ndarray, most: int = 0) -> list[int]:
    """Select the tokens that a reduced vocabulary keeps, and return their numbers in rising order.

    Special tokens, added tokens and the unknown token are always kept, and so are single characters or bytes (except
    for the type WordLevel). Further tokens are kept in order of frequency. A token of a byte-pair tokenizer is kept
    together with the two tokens that are merged into it.

    Args:
        tokenizer: the content of a tokenizer.json.
        counts: how often each token occurs in the corpus, from `count_tokens`.
        most: maximum size of the reduced vocabulary; 0 keeps all tokens that occur.

    Raises:
        ValueError: the tokenizer's type is not WordPiece, BPE or WordLevel, or the tokens that are always kept are more
            than `most`.
    """
    model = _model(tokenizer)
    numbers = model["vocab"]
    merges = {a + b: (a, b) for a, b in map(_halves, model.get("merges", ()))}
    required = required_tokens(tokenizer)
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
    """Return the number of a token, and the numbers of all tokens that it is merged from.

    Args:
        number: number of the token.
        tokens: all tokens by number.
        numbers: all numbers by token.
        merges: the two halves of each merged token.
    """
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
    """Return a copy of a tokenizer that has only the tokens `ids`, renumbered: token `ids[i]` gets the number i.

    Args:
        tokenizer: the content of a tokenizer.json.
        ids: numbers of the tokens to keep, from `select_tokens`.
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
    """Give the special tokens inside a tokenizer's post-processor their new numbers, in place.

    They stand in the `ids` of a template, and in (token, number) pairs.

    Args:
        node: the post-processor, or one of the processors inside it.
        new: new token numbers by old number.
    """
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
    """Write the reduced `tokenizer.json`, and `vocabulary.json` with the original numbers of the tokens that were kept.

    A model with the spec string `pretrained(..., keep=FOLDER)` reads `vocabulary.json`, and keeps only the embeddings
    of these tokens.

    Args:
        folder: the folder to write to.
        tokenizer: the content of the original tokenizer.json.
        ids: numbers of the tokens to keep, from `select_tokens`.
        size: number of tokens of the original vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        draft = Path(temporary)
        text = json.dumps(reduce_tokenizer(tokenizer, ids), ensure_ascii=False, indent=1)
        seal.write_text(draft / "tokenizer.json", text)
        seal.write_text(draft / VOCABULARY, json.dumps({"ids": list(ids), "size": size}))
        seal.seal_folder(draft)
        for name in VOCABULARY_FILES:  # the seal first, so that after a kill it does not fit the old files
            (draft / name).replace(folder / name)
