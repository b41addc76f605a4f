"""Print notes for the user on stderr: what a command found or did that changes no result."""

import functools
import sys

from jaxdistill.core.errors import DamageError, one_line


@functools.cache
def note(text: str) -> None:
    """Print a note on stderr, each text once in a process."""
    sys.stderr.write(f"note: {text}\n")


def note_damage(error: BaseException) -> None:
    """Print a note about a damaged file that the command does without, or writes again; a missing file needs none."""
    if isinstance(error, DamageError):
        note(one_line(error))
