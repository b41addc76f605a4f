"""Convert a tokenizer.json to the metadata of a GGUF file, so that llama.cpp splits texts into the same tokens.

llama.cpp has byte-level byte pair encoding as in GPT-2, with a few ways to split a text into words first. For any other
tokenizer, the file has the tokens without their merges: llama.cpp can then print texts, but must be given token ids.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.data.text import tokenizer as tokenizers
from jaxdistill.models.hub.gguf_tokenizer import (
    CONTROL,
    LLAMA3,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    known_pre_tokenizers,
)

SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # name in transformers: name in llama.cpp
NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that no UTF-8 text has


class Vocabulary(NamedTuple):
    """A tokenizer as metadata of a GGUF file.

    fields: the metadata, by key
    notes: sentences on differences between llama.cpp and the tokenizer
    """

    fields: Mapping[str, Any]
    notes: tuple[str, ...]


def vocabulary(file: Path | None, size: int, end: str) -> Vocabulary:
    """Convert a tokenizer to the metadata of a GGUF file.

    Args:
        file: the tokenizer.json; None if the model has no tokenizer.
        size: number of tokens of the model, which may be more than those of the tokenizer.
        end: the token that followed each text in training; empty if there was none.

    Source: GGUF, github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer".
    """
    unused = {number: f"<|unused_{number}|>" for number in range(size)}
    kinds = dict.fromkeys(range(size), UNUSED)
    if file is None:
        note = "The model has no tokenizer: give llama.cpp token ids."
        return Vocabulary(_ids_only(unused, kinds), (note,))
    tokenizer = tokenizers.load(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    content = json.loads(tokenizer.to_str())
    settings = _settings(file.with_name("tokenizer_config.json"))
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    kinds |= dict.fromkeys(names, NORMAL)
    kinds |= {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in content["added_tokens"]}
    special = _special_ids(tokenizer, settings, end)
    if problem := _problem(content, special):
        cure = f"give it token ids, made by {file.name}"
        note = f"llama.cpp cannot cut texts as the tokenizer does, which {problem}: {cure}."
        return Vocabulary({**_ids_only({**unused, **names}, kinds), **special}, (note,))
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(content),
        "tokenizer.ggml.tokens": list({**unused, **names}.values()),
        "tokenizer.ggml.token_type": list(kinds.values()),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
        **special,
    }
    if "chat_template" in settings:
        fields["tokenizer.chat_template"] = settings["chat_template"]
    return Vocabulary(fields, _notes(content, special))


def _ids_only(names: Mapping[int, str], kinds: Mapping[int, int]) -> dict[str, Any]:
    """Return tokenizer metadata without real merges, as a dict: llama.cpp can print tokens, but must be given ids.

    With these metadata, llama.cpp would split a text into wrong tokens.

    Args:
        names: each token by its number.
        kinds: type of each token by its number.
    """
    letters = _byte_letters()
    spelled = lambda token: "".join(letters[byte] for byte in token.encode())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [name if kinds[n] == CONTROL else spelled(name) for n, name in names.items()],
        "tokenizer.ggml.token_type": list(kinds.values()),
        "tokenizer.ggml.merges": [f"{letters[0]} {letters[0]}"],  # llama.cpp requires one merge; this one never applies
    }


def _byte_letters() -> list[str]:
    """Return the 256 characters that stand for the bytes 0 to 255 in a byte-level vocabulary, in this order.

    A printable byte is represented by its Latin-1 character. The other bytes are represented by the characters from
    code point 256 on.
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printed]
    letters = {byte: chr(byte) for byte in printed} | {byte: chr(256 + place) for place, byte in enumerate(rest)}
    return [letters[byte] for byte in range(256)]


def _problem(content: Mapping[str, Any], special: Mapping[str, Any]) -> str:
    """Return the reason why llama.cpp cannot tokenise as a tokenizer does, such as "has no merges"; empty if it can.

    Args:
        content: content of a tokenizer.json.
        special: metadata about its special tokens.
    """
    model = content["model"]
    if model["type"] != "BPE":
        return f"is of type {model['type']}"
    if content["normalizer"] not in (None, {"type": "NFC"}):
        return f"normalises texts by {content['normalizer']['type']}"
    name = _pre_tokenizer(content)
    if not name:
        return "splits a text into words in another way"
    if bool(model["ignore_merges"]) != (name == LLAMA3) or model["dropout"]:
        return "applies its merges in another way"
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return "marks the inside of words"
    if not model["merges"]:
        return "has no merges"
    if len(special) == 0:
        return "adds several tokens to a text"
    if any(entry["lstrip"] or entry["rstrip"] or entry["single_word"] for entry in content["added_tokens"]):
        return "has special tokens that take in spaces"
    return ""


def _pre_tokenizer(content: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for a tokenizer's way to split a text into words; empty if llama.cpp does not have it.

    Args:
        content: content of a tokenizer.json.
    """
    from tokenizers import Tokenizer, models

    for name, pre_tokenizer in known_pre_tokenizers().items():
        known = Tokenizer(models.BPE())
        known.pre_tokenizer = pre_tokenizer
        if _without_offsets(json.loads(known.to_str())["pre_tokenizer"]) == _without_offsets(content["pre_tokenizer"]):
            return name
    return ""


def _without_offsets(node: Any) -> Any:
    """Remove the key `trim_offsets`, which does not change the tokens, from a part of a tokenizer.json."""
    if isinstance(node, Mapping):
        return {key: _without_offsets(value) for key, value in node.items() if key != "trim_offsets"}
    return [_without_offsets(value) for value in node] if isinstance(node, list) else node


def _settings(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _special_ids(tokenizer: Any, settings: Mapping[str, Any], end: str) -> dict[str, Any]:
    """Return the GGUF metadata about a tokenizer's special tokens, as a dict.

    It is empty if the tokenizer adds more than one token before, or after, a text.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        settings: content of its tokenizer_config.json; empty if there is no such file.
        end: the token that followed each text in training; empty if there was none.
    """
    text = lambda value: value.get("content") if isinstance(value, Mapping) else value  # a text, or an added token
    tokens = {name: tokenizer.token_to_id(text(settings.get(f"{name}_token")) or "") for name in SPECIAL}
    if end:
        tokens["eos"] = tokenizer.token_to_id(end)
    plain, framed = (tokenizers.encode(tokenizer, ["a"], special)[0].ids for special in (False, True))
    starts = [place for place in range(len(framed) + 1) if framed[place : place + len(plain)] == plain]
    before, after = (framed[: starts[0]], framed[starts[0] + len(plain) :]) if starts else (framed, [])
    if max(len(before), len(after)) > 1:
        return {}
    tokens |= {**({"bos": before[0]} if before else {}), **({"eos": after[0]} if after else {})}
    ids = {f"tokenizer.ggml.{SPECIAL[name]}_token_id": number for name, number in tokens.items() if number is not None}
    return {**ids, "tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(after)}


def _notes(content: Mapping[str, Any], special: Mapping[str, Any]) -> tuple[str, ...]:
    """Return sentences on the remaining differences between llama.cpp and a tokenizer that it supports.

    Args:
        content: content of the tokenizer.json.
        special: metadata about its special tokens.
    """
    notes = []
    letters, vocab = _byte_letters(), content["model"]["vocab"]
    if absent := [f"{byte:02X}" for byte in range(256) if byte not in NEVER and letters[byte] not in vocab]:
        named = ", ".join(absent) if len(absent) <= 8 else f"{len(absent)} bytes"
        notes.append(f"The tokenizer has no token for {named}: llama.cpp may cut a text with them in another way.")
    if content["normalizer"]:
        notes.append("llama.cpp does not normalise texts: give it texts in Unicode's form NFC.")
    if "tokenizer.ggml.eos_token_id" not in special:
        notes.append("The tokenizer names no token that ends a text: llama.cpp then takes token 11.")
    return tuple(notes)
