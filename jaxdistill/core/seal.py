"""Seal the files and folders that a run writes and later believes, and check the seal when they are read.

    a JSON file     holds its own SHA-256 under the key `seal`
    a data file     has a sealed JSON file beside it, `x.json` for `x.jsonl`, with its SHA-256 and what it belongs to
    a line of a log holds its own CRC-32 under that key
    a folder        has a file `seal.json` with the SHA-256 of each file

Arrays of checkpoints have checksums of their own, see `checksums.py`; a sealed JSON file keeps them.
"""

import errno
import functools
import hashlib
import json
import os
import typing
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core.atomic import new_file
from jaxdistill.core.errors import DamageError

SEAL = "seal"
FOLDER_SEAL = "seal.json"

BucketPath = Any  # etils.epath.Path, with the methods of pathlib.Path; imported only where there is a bucket
JsonTypes = Mapping[str, Any]  # a type, or several, or `list[dict]` and the like


def write(file: Path | BucketPath, content: Mapping[str, Any]) -> None:
    """Write a sealed JSON file atomically: a reader sees the complete old or new file, even if the process dies.

    Args:
        file: the file; its folder is created if it is missing.
        content: JSON data.
    """
    plain = json.loads(json.dumps(dict(content)))  # as a reader gets it: lists for tuples, texts as keys
    write_text(file, json.dumps({**plain, SEAL: _checksum(plain)}) + "\n")


def write_text(file: Path | BucketPath, text: str) -> None:
    """Write a text file atomically: a reader sees the complete old or new file, even if the process dies.

    A lone surrogate, which UTF-8 cannot express, becomes a question mark.
    """
    if not isinstance(file, Path):  # an object of a bucket is complete, or is not there
        file.write_bytes(text.encode("utf-8", errors="replace"))
        return
    with new_file(file) as draft, draft.open("x", encoding="utf-8", errors="replace") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def sealed_line(content: Mapping[str, Any], owner: str = "") -> str:
    """Return JSON data as one line of a file that grows, with a short checksum of its own (CRC-32).

    Args:
        content: JSON data.
        owner: what the line belongs to, such as a run and a model; it is not in the line, but in its checksum.
    """
    text = json.dumps(dict(content))
    return f"{text[:-1]}, {json.dumps(SEAL)}: {json.dumps(_line_checksum(owner + text))}}}"


def open_line(line: str, owner: str = "") -> dict[str, Any]:
    """Return the JSON data of a line of `sealed_line`.

    Lines of earlier versions have no checksum, or one without the owner.

    Raises:
        DamageError: the line has changed since it was written, or belongs to another owner.
        ValueError: the line is no JSON object, as one that a killed run has not finished.
    """
    try:
        content = json.loads(line)
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("the line is no JSON object")
    seal = content.pop(SEAL, None)
    text = json.dumps(content)
    if seal is not None and seal not in (_line_checksum(owner + text), _line_checksum(text)):
        raise DamageError("the line has changed since it was written (checksum differs)")
    return content


def _line_checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(file: Path | BucketPath, types: JsonTypes, required: bool = False) -> dict[str, Any]:
    """Read a sealed JSON file, and return its content without the seal.

    Args:
        file: the file.
        types: the keys that the file must have, with the type of each value, `(int, float)` for one of several, or
            `list[dict]` for a list of objects; a bool is no int.
        required: refuse a file without a seal, which an earlier version has written, or whose seal was removed.

    Raises:
        FileNotFoundError: there is no such file.
        DamageError: the file is no JSON, its content differs from its seal, or a value has another type.
        OSError: the disk or the network failed; the file may be good.
    """
    if isinstance(file, Path) and (file.is_fifo() or file.is_socket() or file.is_char_device()):
        raise DamageError(f"{file} is a pipe, a socket or a device, and no regular file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if isinstance(file, Path) and file.is_symlink():
            raise DamageError(f"{file} is a link to a file that does not exist") from None
        raise
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise DamageError(f"{file} is damaged ({error})") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamageError(f"{file} is a link that leads to itself") from None
        raise
    if not isinstance(content, dict):
        raise DamageError(f"{file} is damaged (it is not a JSON object)")
    seal = content.pop(SEAL, None)
    if seal is None and required:
        raise DamageError(f"{file} has no seal")
    if seal is not None and seal != _checksum(content):
        raise DamageError(f"{file} has changed since it was written (checksum differs)")
    for key, kinds in types.items():
        if key not in content or not _is_of(content[key], kinds):
            raise DamageError(f"{file} is damaged ({key!r} is missing or of another type)")
    return content


def is_sealed(file: Path) -> bool:
    """Return True if a file is a good sealed JSON file."""
    try:
        return bool(read(file, {}, required=True))
    except (FileNotFoundError, DamageError):
        return False


def _is_of(value: Any, kind: Any) -> bool:
    """Return True if a JSON value is of a type, of one of several types, or a list or dict with values of a type."""
    if arguments := typing.get_args(kind):
        values = value.values() if isinstance(value, dict) else value
        return isinstance(value, typing.get_origin(kind)) and all(_is_of(each, arguments[-1]) for each in values)
    return isinstance(value, kind) and not isinstance(value, bool)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.lru_cache(maxsize=256)  # a run opens the same weights several times
def _sha256_once(file: Path, size: int, modified: int) -> str:
    return sha256(file)


def sha256_once(file: Path) -> str:
    """Return the SHA-256 of a file's bytes; a file that has not changed is read once in a process."""
    stat = file.stat()
    return _sha256_once(file.absolute(), stat.st_size, stat.st_mtime_ns)


def seal_file(file: Path, about: Mapping[str, Any]) -> None:
    """Write the seal of a data file beside it: a sealed JSON file with its SHA-256, and what the file belongs to.

    Args:
        file: the data file, which is complete.
        about: JSON data that tells the file from others of its kind, such as its number.
    """
    write(file.with_suffix(".json"), {"sha256": sha256(file), **about})


def check_file(file: Path, about: Mapping[str, Any]) -> None:
    """Compare a data file with the seal beside it.

    Args:
        file: the data file.
        about: the data that `seal_file` was given; keys that an earlier version did not write are not compared.

    Raises:
        FileNotFoundError: the file has no seal.
        DamageError: the file is missing, has changed, or belongs to something else; or its seal is damaged.
    """
    sealed = read(file.with_suffix(".json"), {"sha256": str})
    if not file.is_file():
        raise DamageError(f"{file} is missing")
    if sealed["sha256"] != sha256(file):
        raise DamageError(f"{file} has changed since it was written (checksum differs)")
    if other := [key for key, value in about.items() if sealed.get(key, value) != value]:
        raise DamageError(f"{file} belongs to something else ({', '.join(other)} differs)")


def seal_folder(folder: Path) -> None:
    """Write `seal.json` into a folder, with the SHA-256 of each file in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != FOLDER_SEAL)
    write(folder / FOLDER_SEAL, {"files": {str(file.relative_to(folder)): sha256(file) for file in files}})


def seal_again(file: Path) -> None:
    """Replace the SHA-256 of one file in the `seal.json` of its folder; those of the other files stay."""
    files = read(file.parent / FOLDER_SEAL, {"files": dict}, required=True)["files"]
    write(file.parent / FOLDER_SEAL, {"files": {**files, file.name: sha256(file)}})


def read_digests(folder: Path) -> dict[str, str] | None:
    """Return the SHA-256 of each file that the seal of a folder lists, by name; None: the folder has no seal.

    Raises:
        DamageError: the seal is damaged.
    """
    try:
        return read(folder / FOLDER_SEAL, {"files": dict})["files"]
    except FileNotFoundError:
        return None


def check_in_folder(*files: Path, root: Path | None = None, listed: bool = False) -> None:
    """Compare files with the `seal.json` of their folder, if it has one.

    Args:
        files: the files.
        root: the sealed folder in which the files lie at any depth; None: the folder of each file.
        listed: refuse a file that the seal does not list, such as weights that were added later.

    Raises:
        DamageError: a file is missing, was added or has changed, or the seal is damaged; the message names the first
            such file.
    """
    for file in files:
        folder = file.parent if root is None else root
        name, sealed, seal_file = str(file.relative_to(folder)), read_digests(folder), folder / FOLDER_SEAL
        if sealed is None or (name not in sealed and not (listed and file.exists())):
            continue
        if name not in sealed:
            raise DamageError(f"{file} was added after the folder was sealed; if it is meant, delete {seal_file}")
        if not file.is_file():
            raise DamageError(f"{file} is missing")
        if sha256_once(file) != sealed[name]:
            cure = f"if the change is meant, delete {seal_file}"
            raise DamageError(f"{file} has changed since it was written (checksum differs); {cure}")


def check_folder(folder: Path) -> None:
    """Compare all files of a folder with its `seal.json`.

    Raises:
        FileNotFoundError: the folder has no seal.
        DamageError: a file is missing or has changed, or the seal is damaged; the message names the first such file.
    """
    for name, digest in read(folder / FOLDER_SEAL, {"files": dict}, required=True)["files"].items():
        if not (folder / name).is_file():
            raise DamageError(f"{folder / name} is missing")
        if sha256_once(folder / name) != digest:
            raise DamageError(f"{folder / name} has changed since it was written (checksum differs)")
