"""Errors with messages for the user, which name the config key or the file, what is wrong and the cure."""

import contextlib
import difflib
import re
import struct
import sys
import sysconfig
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """The error for a mistake in a config or on the command line; printed without a traceback, with exit code 2.

    Args:
        path: the config key with the mistake, such as "objective.kd.term"; may be empty.
        message: what is wrong, and how to mend it.
    """

    def __init__(self, path: str, message: str):
        self.path, self.message = path, message
        super().__init__(f"{path}: {message}" if path else message)


class DamageError(RuntimeError):
    """The error for a damaged file of a run that nothing can replace; printed without a traceback, with exit code 4.

    The message names the file and what is wrong with it.
    """


class NonFiniteError(RuntimeError):
    """The error for a training that diverged: a loss or the parameters became NaN or infinite; exit code 3."""


class BadStartError(ConfigError, NonFiniteError):
    """The error for a loss that is not finite at the first step; a mistake of the input, with exit code 2."""


class Stopped(Exception):
    """The exception that ends a run at SIGTERM or Ctrl-C, after its state is saved; the same command resumes it."""


def short_repr(value: Any) -> str:
    """Return the `repr` of a value on one line, at most 80 characters, for an error message."""
    return " ".join(repr(value).split())[:80]


# Cyrillic letters, and the Latin ones that look the same
LOOK_ALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425",
    "aeopcyxijsABEKMHOPCTX",
)


# Errors of JAX about a value that is not known while a function is traced, by name, since JAX is not imported here
TRACING = {"ConcretizationTypeError", "NonConcreteBooleanIndexError", "TracerArrayConversionError"}
TRACING |= {"TracerIntegerConversionError"}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: 'Did you mean NAME? Known: NAMES.'.

    If the name differs from a valid one only in Cyrillic letters that look like Latin ones, the text says so instead.

    Args:
        name: the unknown name; the most similar valid name is suggested, if one is similar enough.
        known: all valid names.
    """
    known = sorted(known)
    if alike := next((each for each in known if each.translate(LOOK_ALIKES) == name.translate(LOOK_ALIKES)), None):
        return f"It has other letters than {alike!r}, which looks alike: {name!a}, {alike!a}."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    # otherwise blanks at the ends would be invisible
    known_texts = (each if each == each.strip() and each else repr(each) for each in known)
    return (f"Did you mean {close[0]!r}? " if close else "") + "Known: " + (", ".join(known_texts) or "none") + "."


def text_of(error: BaseException) -> str:
    """Return the message of an error, or an empty text if `str(error)` fails, as it may for a class of the user."""
    try:
        return str(error)
    except Exception:
        return ""


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line."""
    return " ".join(text_of(error).split())


def message_of(error: BaseException) -> str:
    """Return the first paragraph of an error's message as one line.

    If the traceback passes through the user's own code (neither jaxdistill nor an installed package), the file name and
    line number of that code are appended.
    """
    text = " ".join(text_of(error).strip().split("\n\n")[0].split()) or type(error).__name__
    if _is_of_tracing(error):  # drop the part in which JAX explains tracing
        cure = "Use jnp instead of np, and jnp.where instead of if and while"
        text = f"a value is used in Python or NumPy that is only known when the program runs. {cure}"
    text = textwrap.shorten(text, 400, placeholder=" ...")
    return text + user_location(error)


def _is_of_tracing(error: BaseException) -> bool:
    return bool(TRACING & {kind.__name__ for kind in type(error).__mro__})


def typed_message_of(error: BaseException) -> str:
    """Return the message of an error as one line, "TYPE: MESSAGE", or "MESSAGE" alone for a ValueError or TypeError.

    The type is also left out for an error without a message, and for an error of JAX about tracing.
    """
    plain = isinstance(error, ValueError | TypeError) or not text_of(error).strip() or _is_of_tracing(error)
    return message_of(error) if plain else f"{type(error).__name__}: {message_of(error)}"


def user_location(error: BaseException) -> str:
    """Return the place in the user's own code where an error was raised, as text " (FILE, line N)".

    This is the innermost frame of the traceback that is not in jaxdistill, in an installed package or in Python itself.
    If there is no such frame, the result is ''. Frames in the message count, too: if a callback fails in a compiled
    program, JAX puts the callback's traceback there.
    """
    package, installed = Path(__file__).parents[1], sysconfig.get_paths()["purelib"]
    library_prefixes = (*(f"{folder}/" for folder in (package, installed, sys.prefix, sys.base_prefix)), "<")
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]  # outermost first
    frames += re.findall(r'File "([^"\n]+)", line (\d+)', text_of(error))
    is_library = lambda file: file.startswith(library_prefixes) or re.search(r"/(site|dist)-packages/", file)
    user_frames = [(file, line) for file, line in frames if not is_library(file)]
    return f" ({Path(user_frames[-1][0]).name}, line {user_frames[-1][1]})" if user_frames else ""


class WeightsError(ValueError):
    """The error for pretrained weights that cannot be used; the message says which weights, and what is wrong."""


# What a parser raises if a file is damaged or has another form; a bug of ours, such as a NameError, is none of these.
FORM_ERRORS: tuple[type[Exception], ...] = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
FORM_ERRORS += (EOFError, RecursionError, struct.error)


@contextlib.contextmanager
def as_weights_error(path: object) -> Iterator[None]:
    """Convert errors from parsing a model's file to `WeightsError`, inside a `with` block.

    Errors that already have a message for the user pass unchanged, and so does any error that a damaged file does not
    cause, such as a lack of memory.

    Args:
        path: the file, for the message.
    """
    try:
        yield
    except (WeightsError, ConfigError, DamageError):
        raise
    except Exception as error:
        if not isinstance(error, FORM_ERRORS) and type(error).__name__ != "SafetensorError":
            raise
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise WeightsError(f"{path} is damaged, or has an unknown form ({reason})") from error
