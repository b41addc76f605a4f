"""Check the files and folders that a command is to write, before any work is done, so that nothing is lost by it."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from jaxdistill.core.errors import ConfigError

NAME_BYTES = 255  # of a file name, on most file systems
BUCKET = re.compile(r"[a-z][a-z0-9]+:/")  # gs://bucket/run, which `Path` writes with one slash


def check_writable(folder: Path, option: str) -> None:
    """Check that a folder can be created and written, before any work is done; nothing is created yet.

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
            with tempfile.TemporaryFile(dir=place):  # only the attempt tells, in /proc or on a network disk
                pass
        except OSError:
            problem = f"cannot be written: {str(place)!r} is read-only, no disk, or belongs to another user"
    if problem:
        raise ConfigError(option, f"{str(folder)!r:.300} {problem}; choose another folder.")


def check_study(folder: Path) -> None:
    """Check that the folder of a study can be created and written, and holds no run itself.

    Raises:
        ConfigError: it holds a run, or cannot be written.
    """
    if any((folder / name).exists() for name in ("config.json", "results.json")):
        raise ConfigError("--workdir", f"{str(folder)!r} holds a run. Choose another folder.")
    check_writable(folder, "--workdir")


def check_no_other_folders(folder: Path, option: str, is_ours: Callable[[Path], bool] = lambda place: False) -> None:
    """Check that a folder that is to be written holds no folders with files, which may be somebody's data or runs.

    Args:
        folder: the folder.
        option: option of the command line, or config key, that names it, for the error message.
        is_ours: function that returns True for a folder inside it that may be there.

    Raises:
        ConfigError: it holds one.
    """
    places = sorted(place for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
    places = [place for place in places if not place.name.startswith(".") and not is_ours(place)]
    if others := [place.name for place in places if any(each.is_file() for each in place.rglob("*"))]:
        problem = f"{str(folder)!r} holds other folders with files ({', '.join(others[:4])})"
        raise ConfigError(option, f"{problem}. Choose a new or empty folder.")


def check_no_other_files(folder: Path, option: str, is_ours: Callable[[str], bool] = lambda name: False) -> None:
    """Check that a folder that is to be written holds nothing else, which would be mixed with it or lost.

    Args:
        folder: the folder.
        option: option of the command line that names it, for the error message.
        is_ours: function that returns True for the name of a file that an earlier call of the command has written.

    Raises:
        ConfigError: it holds something else.
    """
    names = sorted(place.name for place in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in names if not name.startswith(".") and not is_ours(name)]:
        problem = f"{str(folder)!r} holds other files ({', '.join(others[:4])})"
        raise ConfigError(option, f"{problem}. Choose a new or empty folder.")


def check_output(file: Path, option: str, overwrite: bool) -> None:
    """Check, before any work is done, that a file can be written, and that no file is lost by it.

    Args:
        file: the file.
        option: option of the command line that names it.
        overwrite: replace a file that exists.

    Raises:
        ConfigError: the file exists and shall not be replaced, it is a folder, or it cannot be written.
    """
    if file.is_dir():
        raise ConfigError(option, f"{str(file)!r} is a folder. Choose a file.")
    if (file.exists() or file.is_symlink()) and not overwrite:
        raise ConfigError(option, f"{str(file)!r} exists. Choose another file, or replace it with --overwrite.")
    check_writable(file.absolute().parent, option)
