"""Show the progress of long preparations: a bar in a terminal, and nothing in a file, where a note tells the end."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterable, Iterator


def progress[Item](items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items; in a terminal, show a bar with their number and the time that is left.

    Args:
        items: the items, such as chunks of a file.
        title: what is being done.
        total: number of items; None: unknown.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, title, total=total, console=console, transient=True)


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Return a context manager in which TensorFlow Datasets logs nothing below errors."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def quiet(title: str) -> Iterator[None]:
    """Return a context manager in which TensorFlow Datasets writes nothing; in a terminal, a sign shows that it works.

    Its bars and messages would fill a page. Errors are raised all the same.

    Args:
        title: what is being done.
    """
    import tensorflow_datasets as tfds
    from rich.console import Console

    console = Console(stderr=True)
    sign = console.status(title) if console.is_terminal else contextlib.nullcontext()
    tfds.disable_progress_bar()
    try:
        with sign, errors_only(), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
