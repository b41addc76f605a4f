"""Show a progress bar on stderr; if stderr is not a terminal, show nothing."""

import sys
from collections.abc import Iterable, Iterator


def progress[Item](items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of an iterable, and show a progress bar on stderr if it is a terminal.

    Args:
        items: the items, such as chunks of a file.
        title: text beside the bar, which says what is being done.
        total: number of items; None if it is not known.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, title, total=total, console=console, transient=True)
