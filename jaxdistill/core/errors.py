"""The one exception for a user's mistake: a message with the config path, the value and the cure."""

import difflib
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


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


def message_of(error: Exception) -> str:
    """The first paragraph of an error as one line, with the place of a mistake in the user's own code."""
    text = re.sub(r"\s+", " ", str(error).strip().split("\n\n")[0])[:400] or type(error).__name__
    return text + _place(error)


def _place(error: Exception) -> str:
    """File and line where it was raised, if neither in this package nor in an installed one."""
    package = Path(__file__).parents[1]
    others = (*(f"{folder}/" for folder in (package, sysconfig.get_paths()["purelib"], sys.base_prefix)), "<")
    frames = traceback.extract_tb(error.__traceback__)  # from here on inwards
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and what is wrong with it."""
