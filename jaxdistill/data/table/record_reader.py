"""An opened file of records, which is read a few at a time, and how a text file is written."""

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Chunk = dict[str, list[Any]]
ROWS = 1024  # records of a chunk


class TableError(ValueError):
    """A mistake in a user's file; the message names the file, the place and what is wrong."""


class TextFormat(NamedTuple):
    """How a text file is written.

    encoding: encoding of CSV, TSV and JSON lines
    delimiter: character between two values of a CSV file; empty: a comma, in TSV a tab
    """

    encoding: str = "utf-8"
    delimiter: str = ""


# Encodings of host names and of Python's literals, not of files
UNSUPPORTED_ENCODINGS = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")


def check_text_format(text_format: TextFormat) -> None:
    """Check that there is such an encoding, and that a delimiter is one character.

    Raises:
        TableError: there is none.
    """
    encoding, delimiter = text_format
    try:
        codec = codecs.lookup(encoding)
        is_text = codec._is_text_encoding and codec.name not in UNSUPPORTED_ENCODINGS
    except (LookupError, ValueError):  # unknown, or no name at all
        is_text = False
    if not is_text:
        raise TableError(f"the encoding {encoding!r} is unknown. Give one such as utf-8 or latin-1.")
    if len(delimiter) > 1 or not delimiter.isascii() or (delimiter in ("\0", "\n", "\r", '"') and delimiter):
        raise TableError(f"the delimiter {delimiter!r} must be one character of ASCII, such as ;")


class RecordReader(NamedTuple):
    """A file of records that was opened: its columns are known, and its records can be read.

    columns: names of all columns
    chunks: `(names of columns) -> chunks`, reads the records from the start
    class_names: column -> names of the classes that its numbers stand for, if the file defines them
    """

    columns: tuple[str, ...]
    chunks: Callable[[Sequence[str]], Iterator[Chunk]]
    class_names: Mapping[str, tuple[str, ...]] = {}
