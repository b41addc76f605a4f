"""The tokenizer inside a GGUF file, as one of the package `tokenizers`: byte-level byte pair encoding, as of GPT-2."""

import json
from pathlib import Path
from typing import Any

from jaxdistill.core.errors import WeightsError
from jaxdistill.models.hub.gguf import Gguf

# How Qwen2 cuts text into words: Qwen2Tokenizer of transformers, Apache-2.0
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL, USER_DEFINED = 3, 4  # types of token that no merge makes


def tokenizer(source: Gguf) -> Any:
    """A `tokenizers.Tokenizer` with the file's own vocabulary and merges.

    Raises:
        WeightsError: a tokenizer of another kind (the known ones are listed), or none.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    known = {name: source.fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre", "tokens", "merges")}
    if known["model"] != "gpt2" or not known["tokens"] or known["merges"] is None:
        raise WeightsError(f"{source.where}: its tokenizer is {known['model']!r}, and ours is gpt2 (byte-level) alone")
    tokens = known["tokens"]
    merges = [tuple(merge.split(" ")) for merge in known["merges"]]
    found = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    found.pre_tokenizer = _words(source.where, known["pre"])
    found.decoder = decoders.ByteLevel()
    if known["pre"] == "qwen2":
        found.normalizer = normalizers.NFC()
    types = source.fields.get("tokenizer.ggml.token_type", [])
    typed = list(zip(tokens, types, strict=False))
    found.add_tokens([AddedToken(token, normalized=False) for token, kind in typed if kind == USER_DEFINED])
    found.add_special_tokens([AddedToken(token, special=True) for token, kind in typed if kind == CONTROL])
    if source.fields.get("tokenizer.ggml.add_bos_token"):
        number = source.fields["tokenizer.ggml.bos_token_id"]
        first = tokens[number]
        found.post_processor = processors.TemplateProcessing(f"{first} $A", f"{first} $A $B", [(first, number)])
    return found


def _words(where: str, kind: str | None) -> Any:
    """What cuts a text into words before merges are looked for."""
    from tokenizers import Regex, pre_tokenizers

    bytes_of = lambda cut: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut)
    made = {
        "gpt-2": lambda: bytes_of(True),
        "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of(True)]),
        "qwen2": lambda: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), bytes_of(False)]),
    }
    if kind not in made:
        raise WeightsError(f"{where}: it cuts words as {kind!r}, and we as {', '.join(made)}; take its tokenizer.json")
    return made[kind]()


def write_tokenizer(source: Gguf, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers loads.

    Raises:
        WeightsError: as `tokenizer`.
    """
    tokenizer(source).save(str(folder / "tokenizer.json"))
    fields, tokens = source.fields, source.fields["tokenizer.ggml.tokens"]
    numbers = {
        name: fields.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items()
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": tokens[number] for name, number in numbers.items() if number is not None},
        **({"chat_template": fields["tokenizer.chat_template"]} if "tokenizer.chat_template" in fields else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
