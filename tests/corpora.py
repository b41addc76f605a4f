"""A tokenizer of whole words, and specs of `sentences` and `documents` that use it."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "[PAD] [UNK] [CLS] [SEP] <end> a b c d e f g".split()  # noqa: SIM905


class Labelled(list):
    """A list of records with the number of their classes."""

    classes = 2


def written(folder: Path, vocabulary: list[str], padding: dict | None = None) -> Path:
    """Write a tokenizer of these words, which truncates and may pad, as published ones do; return its folder."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, vocabulary.index(word)) for word in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    made.enable_truncation(4)
    if padding:
        made.enable_padding(**padding)
    made.save(str(folder / "tokenizer.json"))
    return folder


def sentences(words: Path, length: int = 5, more: str = "") -> str:
    return f"sentences(tokenizer='{words}', length={length}{more})"


def documents(words: Path, length: int = 4, more: str = "") -> str:
    return f"documents(tokenizer='{words}', length={length}{more})"
