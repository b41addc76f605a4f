"""Require that the output files and folders of a command can be written, before the command does any work."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError

NAME_BYTES = 255  # largest length of a file name on most file systems
RECORDS = ("config.json", "results.json")  # files in the folder of a run
DERIVED = ("records.json", "explanation.json", "report.html", "lock")  # files beside them
OF_MODEL = ("result.json", "log.jsonl", "checkpoints")  # in the folder of a model
BUCKET = re.compile(r"[a-z][a-z0-9]+:/")  # gs://bucket/run, which `Path` writes with one slash


def check_writable(folder: Path, option: str) -> None:
    """Require that a folder can be created and written, before any work is done; nothing is created yet.

    Args:
        folder: the folder.
        option: option of the command line, or config key, that names it, for the error message.

    Raises:
        ConfigError: the folder cannot be created or written.
    """
    if any(len(part.encode()) > NAME_BYTES for part in folder.parts):
        problem = f"has a name of more than {NAME_BYTES} bytes"
        raise ConfigError(option, f"{str(folder)[:60]!r}... {problem}; choose another folder.")
    if BUCKET.match(str(folder)):
        cure = (
            "Give a folder of a file system that all machines share; checkpoints alone may lie in a bucket, by "
            "checkpoints.bucket"
        )
        raise ConfigError(option, f"{str(folder)!r:.300} is an address of a bucket. {cure}.")
    place = folder.absolute()
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    problem = ""
    if not place.is_dir():
        problem = "is not a folder" if place == folder.absolute() else f"lies below {str(place)!r}, which is no folder"
    else:
        try:
            with tempfile.TemporaryFile(dir=place):  # in /proc or on a network disk, only an attempt shows it
                pass
        except OSError:
            problem = f"cannot be written: {str(place)!r} is read-only, no disk, or belongs to another user"
    if problem:
        raise ConfigError(option, f"{str(folder)!r:.300} {problem}; choose another folder.")


def check_study(folder: Path) -> None:
    """Require that the folder of a study (a comparison of runs) can be created and written, and is not that of a run.

    Raises:
        ConfigError: the folder holds the files of a run, or cannot be written.
    """
    if any((folder / name).exists() for name in RECORDS):
        raise ConfigError("--workdir", f"{str(folder)!r} holds a run. Choose another folder.")
    check_writable(folder, "--workdir")


def check_no_other_folders(folder: Path, option: str, is_ours: Callable[[Path], bool] = lambda place: False) -> None:
    """Require that an output folder has no subfolders with files, which may be somebody's data or runs.

    Subfolders whose names begin with a dot are ignored.

    Args:
        folder: the output folder.
        option: option of the command line, or config key, that names the folder, for the error message.
        is_ours: function that returns True for a subfolder that is allowed.

    Raises:
        ConfigError: there is such a subfolder.
    """
    places = sorted(place for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
    places = [place for place in places if not place.name.startswith(".") and not is_ours(place)]
    if others := [place.name for place in places if any(each.is_file() for each in place.rglob("*"))]:
        problem = f"{str(folder)!r} holds other folders with files ({', '.join(others[:4])})"
        raise ConfigError(option, f"{problem}. Choose a new or empty folder.")


def check_no_other_files(folder: Path, option: str, is_ours: Callable[[str], bool] = lambda name: False) -> None:
    """Require that an output folder holds no unrelated files or folders, which would be mixed with the output or lost.

    Names that begin with a dot are ignored.

    Args:
        folder: the output folder.
        option: option of the command line that names the folder, for the error message.
        is_ours: function that returns True for the name of a file that an earlier call of the command has written.

    Raises:
        ConfigError: the folder holds an unrelated file or folder.
    """
    names = sorted(place.name for place in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in names if not name.startswith(".") and not is_ours(name)]:
        problem = f"{str(folder)!r} holds other files ({', '.join(others[:4])})"
        raise ConfigError(option, f"{problem}. Choose a new or empty folder.")


def check_output(file: Path, option: str, overwrite: bool) -> None:
    """Require that an output file can be written and replaces no existing file by mistake, before any work is done.

    Args:
        file: the output file.
        option: option of the command line that names the file, for the error message.
        overwrite: whether an existing file may be replaced.

    Raises:
        ConfigError: the file exists and may not be replaced, the path is that of a folder, or the file cannot be
            written. A file of a run, a cache or an exported model may never be replaced.
    """
    if file.is_dir():
        raise ConfigError(option, f"{str(file)!r} is a folder. Choose a file.")
    if (file.exists() or file.is_symlink()) and not overwrite:
        raise ConfigError(option, f"{str(file)!r} exists. Choose another file, or replace it with --overwrite.")
    if file.exists() and _is_of_run(file.resolve()):
        raise ConfigError(option, f"{str(file)!r} belongs to a run, or to a sealed folder. Choose another file.")
    check_writable(file.absolute().parent, option)


def _is_of_run(file: Path) -> bool:
    """Return True for a file that a run keeps, or that a seal (a file with the checksums of its folder) lists."""
    beside_record = any((file.parent / name).is_file() for name in RECORDS)
    if beside_record and (file.name in (*RECORDS, *DERIVED) or file.suffix == ".py"):
        return True
    for folder in file.parents:
        inside = file.relative_to(folder)
        if inside.parts[0] in OF_MODEL and all((folder / record).exists() for record in OF_MODEL):
            return True
        try:
            digests = seal.read_digests(folder)
        except DamageError:  # then it is unknown which files it lists
            return True
        if digests is not None and (inside.as_posix() in digests or inside.as_posix() == seal.FOLDER_SEAL):
            return True
    return False
