"""A reader for files of records, which returns a few records at a time, and the format of text files."""

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Chunk = dict[str, list[Any]]
ROWS = 1024  # records of a chunk


class TableError(ValueError):
    """The error for a mistake in a user's file; the message names the file, the place and what is wrong."""


class TextFormat(NamedTuple):
    """The encoding and the delimiter of a text file of records.

    encoding: encoding of CSV, TSV and JSON lines
    delimiter: character between two values of a line; if empty, a comma in CSV and a tab in TSV
    """

    encoding: str = "utf-8"
    delimiter: str = ""


# Encodings of host names and of Python's literals, not of files
UNSUPPORTED_ENCODINGS = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")


def check_text_format(text_format: TextFormat) -> None:
    """Require that the encoding of text files is known, and that the delimiter is empty or one ASCII character.

    Raises:
        TableError: the encoding is unknown, or the delimiter is not allowed.
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
    """An opened file of records, whose columns are known and whose records are read in chunks.

    columns: names of all columns
    chunks: `(names of columns) -> chunks`, reads these columns of all records from the start; a chunk is
        `{column: values}`
    class_names: for each column of class numbers, the names of the classes, if the file defines them
    """

    columns: tuple[str, ...]
    chunks: Callable[[Sequence[str]], Iterator[Chunk]]
    class_names: Mapping[str, tuple[str, ...]] = {}
