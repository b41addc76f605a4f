"""The one exception for a user's mistake: a message with the config path, the value and the cure."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A mistake in a config or a command line; shown without a traceback, exit code 2."""

    def __init__(self, path: str, message: str):
        self.path, self.message = path, message
        super().__init__(f"{path}: {message}" if path else message)


def suggest(name: str, known: Iterable[str]) -> str:
    """'Did you mean ...? Known: ...' for a name that is not among the known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"Did you mean {close[0]!r}? " if close else "") + "Known: " + (", ".join(known) or "none") + "."
