"""Finding a checkpoint: a Hugging Face folder, a hub id, or one file of another format."""

import hashlib
import re
from pathlib import Path

from jaxdistill.hub.gguf import Gguf
from jaxdistill.hub.source import Safetensors, Source, WeightsError


def open_source(text: str) -> Source:
    """A checkpoint, open.

    Args:
        text: a Hugging Face folder, a `.gguf` file, or a hub id such as `sentence-transformers/all-MiniLM-L6-v2`, with
            `@revision` if need be.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    path = Path(text).expanduser()
    return Gguf(path) if path.suffix == ".gguf" else Safetensors(folder_of(text))


def fingerprint(text: str) -> str:
    """Tells one checkpoint from another: of each file its size and 64 pieces of it, at even distances.

    Raises:
        WeightsError: there is none.
    """
    path = Path(text).expanduser()
    files = [path] if path.is_file() else sorted(folder_of(text).glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as stream:
            for piece in range(64):
                stream.seek(piece * size // 64)
                digest.update(stream.read(4096))
    return digest.hexdigest()


def folder_of(text: str) -> Path:
    """The folder of a checkpoint; that of a hub id is fetched, or found in the hub's cache.

    Raises:
        WeightsError: there is none.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    name, _, revision = text.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or text.startswith((".", "/", "~")):
        raise WeightsError(f"there is no folder {text!r}, and it is no hub id such as 'google-bert/bert-base-uncased'")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        cure = "hub ids need the extra: pip install jaxdistill[hf]"
        raise WeightsError(f"{text!r} is no folder here, and {cure}") from None
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # of many kinds: no network, no such id, no permission
        why = " ".join(str(error).split())[:200]
        raise WeightsError(f"{text!r} is no folder here and could not be fetched ({why}); give a folder") from None
