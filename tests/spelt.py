"""Two data sets of text, and tokenizers that split it differently, for students and teachers with unlike tokens."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = "the theory of the thing: there, then, they thought it through. Früh übt sich – 東京 ☂!"


def stories(split: str):
    return [{"text": text} for text in (TEXT, "the", "they think that this is the other thing", "", "a thought")]


def letters(split: str, size: int = 48):
    """Return texts in which each letter determines the next, and the first letter the label."""
    alphabet = "abcdefg" * 5
    return [{"text": alphabet[i % 7 : i % 7 + 9 + i % 11], "label": i % 7 % 2} for i in range(size)]


def bytes_of(merges: int) -> Tokenizer:
    """Train a tokenizer of byte pairs like that of GPT-2."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 1 + merges, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    made.train_from_iterator([story["text"] for story in stories("") for _ in range(3)], trainer)
    made.post_processor = processors.ByteLevel(trim_offsets=True)  # as in GPT-2: offsets leave out a word's space
    return made


def pieces_of(merges: int) -> Tokenizer:
    """Train a tokenizer of merged characters like that of Llama: a space is ▁, unknown characters become bytes."""
    corpus = ["the thing they thought that there is"] * 3
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    spell = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(spell)
    known = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=len(known) + 13 + merges, special_tokens=known[:2], show_progress=False)
    made.train_from_iterator(corpus, trainer)
    content = json.loads(made.to_str())
    learned = [token for token in content["model"]["vocab"] if token not in known]
    content["model"]["vocab"] = {token: number for number, token in enumerate([*known, *learned])}
    content["added_tokens"] = content["added_tokens"][:2]
    return Tokenizer.from_str(json.dumps(content))


def words_of() -> Tokenizer:
    """Make a tokenizer in which every letter from a to g is a token."""
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[UNK]", "<stop>", *"abcdefg"])}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return made


def pairs_of() -> Tokenizer:
    """Make a tokenizer of letters from a to g in which "ab" is one token."""
    vocabulary = {word: n for n, word in enumerate([*"gfedcba", "ab", "<halt>"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    made.add_special_tokens(["<halt>"])
    return made


def written(root: Path) -> dict[str, Path]:
    """Write all five tokenizers; return their folders by name."""
    made = {"few": bytes_of(9), "many": bytes_of(60), "pieces": pieces_of(30), "words": words_of(), "pairs": pairs_of()}
    for name, each in made.items():
        (root / name).mkdir()
        each.save(str(root / name / "tokenizer.json"))
    return {name: root / name for name in made}


def aligned(folders: dict[str, Path], student: str, teacher: str, length: int = 16, more: str = "") -> str:
    return f"aligned(student='{folders[student]}', teacher='{folders[teacher]}', length={length}{more})"
