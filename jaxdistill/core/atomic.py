"""Write files and folders atomically: a reader sees a complete version, never a part, even if the process dies."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(file: Path) -> Iterator[Path]:
    """Write a file atomically, in a `with` block that gets a temporary path to write to.

    If the block ends without an error, the temporary file is renamed to `file` and replaces it. Otherwise the temporary
    file is removed, and `file` stays as it was.

    Args:
        file: the file; its folder is created if it is missing.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{secrets.token_hex(8)}.tmp")  # processes on several hosts may have the same process id
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Create a folder atomically, in a `with` block that gets an empty temporary folder to fill.

    If the block ends without an error, the temporary folder is renamed to `folder`; otherwise it is removed. If another
    process has created `folder` in the meantime, that one is kept.

    Args:
        folder: the folder to create; its parent folder is created if it is missing.
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
    """Replace a folder atomically, in a `with` block that gets an empty temporary folder to fill.

    If the block ends without an error, the temporary folder replaces `folder`. The old folder is kept until then, so
    that it is not lost if the process is killed. Only one process at a time may write the folder, because what a killed
    process left behind is cleaned up first.

    Args:
        folder: the folder to replace, which need not exist; its parent folder is created if it is missing.
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
    """Remove a damaged folder, or a symbolic link in its place; do nothing if it is gone or the disk is read-only."""
    aside = folder.with_name(f"{folder.name}.damaged-{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        folder.rename(aside)
    if aside.is_symlink():
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)
