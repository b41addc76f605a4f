"""Print notes for the user on stderr: what a command found or did that changes no result."""

import functools
import sys

from jaxdistill.core.errors import DamageError, one_line


@functools.cache
def note(text: str) -> None:
    """Print "note: TEXT" on stderr; the same text is printed only once in a process."""
    sys.stderr.write(f"note: {text}\n")


def note_damage(error: BaseException) -> None:
    """Print the message of a `DamageError` as a note on stderr; do nothing for other errors, such as a missing file.

    This is for a damaged file that the command does not need, or writes again.
    """
    if isinstance(error, DamageError):
        note(one_line(error))
