"""Write files and folders atomically: a reader sees a complete version, never a part, even if the process dies."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Return a context manager with a path beside `file`, whose file replaces it if the block ends without an error.

    Args:
        file: the file; its folder is created if it is missing.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{secrets.token_hex(8)}.tmp")  # processes of several hosts share a number
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Return a context manager with an empty folder, which gets the name `folder` if the block ends without an error.

    If another process was faster, its folder stays.

    Args:
        folder: the folder; the one that holds it is created if it is missing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as temporary:
        draft = Path(temporary, "whole")
        draft.mkdir()
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Return a context manager with an empty folder, which replaces `folder` if the block ends without an error.

    The earlier folder is kept until then, so that a kill loses neither. Only one process may write the folder: what a
    killed one has left is removed.

    Args:
        folder: the folder; the one that holds it is created if it is missing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.*"):
        if not folder.exists() and (left / "previous").is_dir():  # killed between the two renames
            (left / "previous").rename(folder)
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        draft, previous = Path(temporary, "new"), Path(temporary, "previous")
        draft.mkdir()
        yield draft
        if folder.exists():
            folder.rename(previous)
        try:
            draft.rename(folder)
        except OSError:
            if previous.exists():
                previous.rename(folder)
            raise


def remove_folder(folder: Path) -> None:
    """Remove a damaged folder, or a link in its place; another process may have done so, or the disk be read-only."""
    aside = folder.with_name(f"{folder.name}.damaged-{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        folder.rename(aside)
    if aside.is_symlink():
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)
