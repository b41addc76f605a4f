"""Seal the files and folders that a run writes (store a checksum with them), and check the seal when they are read.

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
    """Write a sealed JSON file (one that holds its own SHA-256) atomically.

    A reader sees the complete old or new file, even if the process dies.

    Args:
        file: the file; its folder is created if it is missing.
        content: JSON data.
    """
    plain = json.loads(json.dumps(dict(content)))  # as JSON returns it: tuples become lists, and keys texts
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
    """Return JSON data as one line of a log file, with a checksum of the line (CRC-32) under the key `seal`.

    Args:
        content: JSON data.
        owner: what the line belongs to, such as a run and a model. The checksum covers it, but the line does not
            contain it.
    """
    text = json.dumps(dict(content))
    return f"{text[:-1]}, {json.dumps(SEAL)}: {json.dumps(_line_checksum(owner + text))}}}"


def open_line(line: str, owner: str = "") -> dict[str, Any]:
    """Parse a line that `sealed_line` wrote, check its checksum, and return its JSON data without the checksum.

    Lines of earlier versions have no checksum, or one that does not cover the owner; they are accepted.

    Args:
        line: the line of the log file.
        owner: the owner that `sealed_line` was given.

    Raises:
        DamageError: the line has changed since it was written, or belongs to another owner.
        ValueError: the line is not a JSON object, such as a line that a killed run has not finished.
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
    """Read a JSON file, check its seal (its own SHA-256), and return its content as a dict without the seal.

    Args:
        file: the file.
        types: the keys that the file must have, with the type of each value: a type such as `str`, `(int, float)` for
            one of several types, or `list[dict]` for a list of objects. A bool does not count as an int.
        required: True to refuse a file without a seal. Otherwise it is accepted, because earlier versions wrote none.

    Raises:
        FileNotFoundError: there is no such file.
        DamageError: the file is not a JSON object, its content differs from its seal, a value is missing or of another
            type, or a required seal is missing.
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
    """Return True if a file is a JSON file with a seal (its own SHA-256) that matches its content."""
    try:
        return bool(read(file, {}, required=True))
    except (FileNotFoundError, DamageError):
        return False


def _is_of(value: Any, kind: Any) -> bool:
    """Return True if a JSON value is of a type such as `str`, `(int, float)` or `dict[str, list]`; a bool is no int."""
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
    """Return the SHA-256 of a file's bytes, in hexadecimal digits; cached until the file's size or time changes."""
    stat = file.stat()
    return _sha256_once(file.absolute(), stat.st_size, stat.st_mtime_ns)


def seal_file(file: Path, about: Mapping[str, Any]) -> None:
    """Write a sealed JSON file beside a data file, with the SHA-256 of the data file.

    The JSON file has the name of the data file with the suffix `.json`.

    Args:
        file: the data file, which must be complete.
        about: JSON data that identify the file among others of its kind, such as its number.
    """
    write(file.with_suffix(".json"), {"sha256": sha256(file), **about})


def check_file(file: Path, about: Mapping[str, Any]) -> None:
    """Check a data file against the JSON file beside it, which `seal_file` wrote with its SHA-256.

    Args:
        file: the data file.
        about: the data that `seal_file` was given; keys that an earlier version did not write are not compared.

    Raises:
        FileNotFoundError: there is no JSON file beside it.
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
    """Write the file `seal.json` into a folder, with the SHA-256 of every file below it that has another name."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != FOLDER_SEAL)
    write(folder / FOLDER_SEAL, {"files": {str(file.relative_to(folder)): sha256(file) for file in files}})


def seal_again(file: Path) -> None:
    """Update the SHA-256 of one changed file in the `seal.json` of its folder, without reading the other files."""
    files = read(file.parent / FOLDER_SEAL, {"files": dict}, required=True)["files"]
    write(file.parent / FOLDER_SEAL, {"files": {**files, file.name: sha256(file)}})


def read_digests(folder: Path) -> dict[str, str] | None:
    """Read `seal.json` of a folder, and return `{relative path: SHA-256}`, or None if the folder has no such file.

    Raises:
        DamageError: the file is damaged, or has no checksum of its own.
    """
    try:
        return read(folder / FOLDER_SEAL, {"files": dict[str, str]}, required=True)["files"]
    except FileNotFoundError:
        return None


def check_in_folder(*files: Path, root: Path | None = None, listed: bool = False) -> None:
    """Require that files match their SHA-256 in the `seal.json` of their folder; do nothing if there is no `seal.json`.

    Args:
        files: the files to check.
        root: the folder with `seal.json`, in which the files lie at any depth; None means the folder of each file.
        listed: True to refuse a file that `seal.json` does not list, such as weights that were added later. Otherwise
            such a file is not checked.

    Raises:
        DamageError: a file is missing, was added or has changed, or `seal.json` is damaged; the message names the first
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
    """Require that all files which a folder's `seal.json` lists match their SHA-256.

    Raises:
        FileNotFoundError: the folder has no `seal.json`.
        DamageError: a file is missing or has changed, or `seal.json` is damaged; the message names the first such file.
    """
    for name, digest in read(folder / FOLDER_SEAL, {"files": dict}, required=True)["files"].items():
        if not (folder / name).is_file():
            raise DamageError(f"{folder / name} is missing")
        if sha256_once(folder / name) != digest:
            raise DamageError(f"{folder / name} has changed since it was written (checksum differs)")
