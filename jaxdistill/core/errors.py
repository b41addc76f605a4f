"""The exception for mistakes of the user: a message with the config path, the value and the cure."""

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
    """Return 'Did you mean ...? Known: ...' for an unknown name."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"Did you mean {close[0]!r}? " if close else "") + "Known: " + (", ".join(known) or "none") + "."


def message_of(error: Exception) -> str:
    """Return the first paragraph of an error as one line, with file and line if the user's own code raised it."""
    text = re.sub(r"\s+", " ", str(error).strip().split("\n\n")[0])[:400] or type(error).__name__
    return text + _user_location(error)


def _user_location(error: Exception) -> str:
    """Return file and line of the innermost frame outside this package and installed packages; else ''."""
    package = Path(__file__).parents[1]
    library_prefixes = (*(f"{folder}/" for folder in (package, sysconfig.get_paths()["purelib"], sys.base_prefix)), "<")
    frames = traceback.extract_tb(error.__traceback__)  # outermost first
    user_frames = [frame for frame in frames if not frame.filename.startswith(library_prefixes)]
    return f" ({Path(user_frames[-1].filename).name}, line {user_frames[-1].lineno})" if user_frames else ""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and what is wrong with it."""
