"""Convert the tokenizer in a GGUF file to the package `tokenizers`: byte-level byte pair encoding, as in GPT-2."""

import json
from pathlib import Path
from typing import Any

from jaxdistill.core.errors import WeightsError
from jaxdistill.models.hub.gguf import Gguf

# How Qwen2 splits text into words: from Qwen2Tokenizer of transformers, Apache-2.0
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = "llama-bpe"  # pre-tokenizer of Llama 3; its BPE keeps words that are in the vocabulary (ignore_merges)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens; only normal ones result from merges


def tokenizer(source: Gguf) -> Any:
    """Build a `tokenizers.Tokenizer` with the vocabulary, merges and special tokens of a GGUF file.

    Raises:
        WeightsError: the file has no tokenizer, or a tokenizer of an unsupported kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    settings = {name: source.fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre", "tokens", "merges")}
    if settings["model"] != "gpt2" or not settings["tokens"] or settings["merges"] is None:
        cure = "only gpt2 (byte-level) with tokens and merges is supported, so use its tokenizer.json"
        raise WeightsError(f"{source.path}: the tokenizer model is {settings['model']!r}; {cure}")
    tokens = settings["tokens"]
    merges = [tuple(merge.split(" ")) for merge in settings["merges"]]
    name, known = settings["pre"], known_pre_tokenizers()
    if name not in known:
        cure = f"supported are {', '.join(known)}; use its tokenizer.json"
        raise WeightsError(f"{source.path}: the pre-tokenizer {name!r} is not supported; {cure}")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    result = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name == LLAMA3))
    result.pre_tokenizer = known[name]
    result.decoder = decoders.ByteLevel()
    if name == "qwen2":
        result.normalizer = normalizers.NFC()
    types = source.fields.get("tokenizer.ggml.token_type", [None] * len(tokens))
    if len(types) != len(tokens):
        raise WeightsError(f"{source.path}: {len(tokens)} tokens have {len(types)} types; the file is damaged")
    typed = list(zip(tokens, types, strict=True))
    result.add_tokens(
        [AddedToken(token, normalized=False) for token, token_type in typed if token_type == USER_DEFINED]
    )
    result.add_special_tokens([AddedToken(token, special=True) for token, token_type in typed if token_type == CONTROL])
    if source.fields.get("tokenizer.ggml.add_bos_token"):
        number = source.fields["tokenizer.ggml.bos_token_id"]
        first = tokens[number]
        result.post_processor = processors.TemplateProcessing(f"{first} $A", f"{first} $A $B", [(first, number)])
    return result


def known_pre_tokenizers() -> dict[str, Any]:
    """Return the supported pre-tokenizers as a dict by their name in llama.cpp.

    A pre-tokenizer splits a text into words before the merges are applied.
    """
    from tokenizers import Regex, pre_tokenizers

    byte_level = lambda split: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    by_regex = lambda pattern: [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(False)]
    return {
        "gpt-2": byte_level(True),
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
        "qwen2": pre_tokenizers.Sequence(by_regex(QWEN2)),
        LLAMA3: pre_tokenizers.Sequence(by_regex(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"))),
    }


def write_tokenizer(source: Gguf, folder: Path) -> None:
    """Write the tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`, which transformers loads.

    Args:
        source: the GGUF file.
        folder: existing folder to write to.

    Raises:
        WeightsError: the file has no tokenizer, or a tokenizer of an unsupported kind.
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
