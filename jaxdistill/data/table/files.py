"""Read files of records chunk by chunk: CSV, TSV, JSON lines, Parquet, npz, and folders of Hugging Face datasets.

A chunk is `{column: values}`, with at most a few thousand records, so that a file larger than memory can be read.
"""

import codecs
import collections
import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core.errors import one_line, suggest
from jaxdistill.data.table.record_reader import ROWS, Chunk, RecordReader, TableError, TextFormat

DELIMITERS = ";\t|,"  # that CSV files may have
_UNCLOSED = ("unexpected end of data", "larger than field limit")  # errors of `csv` about an open quotation mark
BLOCK = 2**24  # bytes of a CSV file that are parsed at once; a record may not be longer


def open_csv(file: Path, text_format: TextFormat) -> RecordReader:
    """Open a CSV file whose first line names the columns; all values are texts. Compressed files are recognised.

    Raises:
        TableError: the file is empty, a line is broken, or the text has another encoding.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    encoding, delimiter = text_format.encoding, text_format.delimiter or ","
    with file.open("rb") as stream:
        if encoding == "utf-8" and stream.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise TableError(f"{file} is not written in utf-8. Name its encoding, utf-16.")

    def reader(columns: Sequence[str]) -> Any:
        options = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), include_columns=columns, strings_can_be_null=False
        )
        return arrow_csv.open_csv(
            pa.input_stream(str(file), compression="detect"),
            # with threads, errors do not give the number of the line
            arrow_csv.ReadOptions(use_threads=False, encoding=encoding, block_size=BLOCK),
            arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            options,
        )

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        last: Chunk = {}
        with _arrow_problems(file, encoding), reader(columns) as batches:
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS):
                    last = batch.slice(start, ROWS).to_pydict()
                    yield last
        if not any("\n" in values[-1] for values in last.values()):
            return
        with pa.input_stream(str(file), compression="detect") as stream, _long_values():
            try:
                collections.deque(csv.reader(_lines(stream, encoding), delimiter=delimiter, strict=True), 0)
            except csv.Error as error:
                if not any(text in str(error) for text in _UNCLOSED):  # of a value that pyarrow reads in another way
                    return
                problem = f"the last record has several lines ({error})"
                raise TableError(f"{file}: {problem}. Close the quotation mark at its beginning.") from None

    try:
        with _arrow_problems(file, encoding), reader(()) as first:
            return RecordReader(tuple(first.schema.names), chunks)
    except TableError:
        if other := _other_delimiter(file, encoding, delimiter):
            problem = f"{file} has {delimiter!r} between values, and its first line has {other!r}"
            raise TableError(f"{problem}. Name this delimiter.") from None
        raise


@contextlib.contextmanager
def _long_values() -> Iterator[None]:
    """Return a context manager in which `csv` accepts values of up to `BLOCK` characters, instead of 131,072.

    The limit applies to the whole process, and is restored at the end.
    """
    limit = csv.field_size_limit(BLOCK)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _other_delimiter(file: Path, encoding: str, delimiter: str) -> str:
    """Return the delimiter in the first line of a file, or an empty text if it is `delimiter` or there is none."""
    import pyarrow as pa

    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            line = next(_lines(stream, encoding), "")
    except (UnicodeDecodeError, OSError):
        return ""
    return next((each for each in DELIMITERS if each in line), "") if delimiter not in line else ""


def open_tsv(file: Path, text_format: TextFormat) -> RecordReader:
    """Open a TSV file, a CSV file whose values are separated by tabs; see `open_csv`."""
    return open_csv(file, text_format._replace(delimiter=text_format.delimiter or "\t"))


@contextlib.contextmanager
def _arrow_problems(file: Path, encoding: str) -> Iterator[None]:
    """Return a context manager that turns an error of pyarrow into a `TableError`, which names file and line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, LookupError, OSError) as error:
        text = one_line(error)
        if "UTF8" in text or isinstance(error, UnicodeDecodeError):
            problem = f"{file} is not written in {encoding} ({text[:160]})"
            raise TableError(f"{problem}. Name its encoding, such as latin-1.") from None
        if "Empty CSV file" in text:
            raise TableError(f"{file} is empty.") from None
        if isinstance(error, LookupError) and not isinstance(error, pa.ArrowException):
            raise TableError(f"the encoding {encoding!r} is unknown. Give one such as utf-8 or latin-1.") from None
        raise TableError(f"{file}: {text[:300].rstrip('.')}. Correct the file.") from None


def open_json_lines(file: Path, text_format: TextFormat) -> RecordReader:
    """Open a file with a JSON object in each line; its columns are the keys of the first object.

    Raises:
        TableError: the file is empty, a line is no JSON object, or the text has another encoding.
    """

    def objects() -> Iterator[dict[str, Any]]:
        import pyarrow as pa

        with _arrow_problems(file, text_format.encoding), pa.input_stream(str(file), compression="detect") as stream:
            for number, line in enumerate(_lines(stream, text_format.encoding), 1):
                if line.strip():
                    yield _json_object(line, file, number)

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        for part in batched(objects(), ROWS):
            yield {name: [record.get(name) for record in part] for name in columns}  # a key that is not there: null

    first = next(objects(), None)
    if first is None:
        raise TableError(f"{file} is empty.")
    return RecordReader(tuple(first), chunks)


def _lines(stream: Any, encoding: str) -> Iterator[str]:
    """Yield the decoded lines of a binary stream of pyarrow, which has no method for lines.

    Raises:
        LookupError: the encoding is unknown.
        UnicodeDecodeError: the text has another encoding.
    """
    rest, decoder, is_first = "", codecs.getincrementaldecoder(encoding)(), True
    while block := stream.read(2**20):
        text = decoder.decode(bytes(block))
        *lines, rest = (rest + (text.removeprefix("\ufeff") if is_first else text)).split("\n")  # no byte order mark
        is_first = False
        yield from lines
    rest += decoder.decode(b"", final=True)
    if rest:
        yield rest


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict, after checking that no key is repeated.

    Raises:
        ValueError: a key is repeated; `json` alone would keep the last value and report nothing.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return content


def _json_object(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{file}, line {number}, is not JSON ({one_line(error)}). Correct it.") from None
    if not isinstance(value, dict):
        raise TableError(f"{file}, line {number}, is not a JSON object, as {{...}}. Write one record in each line.")
    return value


def open_parquet(file: Path, text_format: TextFormat) -> RecordReader:
    """Open a Parquet file; `text_format` is not used, because Parquet is no text.

    Raises:
        TableError: the file is damaged, or it is not Parquet.
    """
    from pyarrow import parquet

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        with _arrow_problems(file, text_format.encoding), parquet.ParquetFile(file) as source:
            for batch in source.iter_batches(batch_size=ROWS, columns=list(columns)):
                yield batch.to_pydict()

    with _arrow_problems(file, text_format.encoding), parquet.ParquetFile(file) as source:
        return RecordReader(tuple(source.schema_arrow.names), chunks)


def open_npz(file: Path, text_format: TextFormat) -> RecordReader:
    """Open an npz file, whose arrays have one row for each record; `text_format` is not used. Pickles are refused.

    Raises:
        TableError: the file is damaged, holds Python objects, or its arrays differ in their number of rows.
    """

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        arrays = _npz_arrays(file, columns)
        sizes = {name: array.shape[:1] for name, array in arrays.items()}
        if len(set(sizes.values())) != 1 or () in sizes.values():
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise TableError(f"{file}: all arrays must have one row for each record; found {shapes}.")
        if empty := next((name for name, array in arrays.items() if 0 in array.shape[1:]), ""):
            raise TableError(f"{file}: {empty!r} has the shape {list(arrays[empty].shape)}: its records are empty.")
        for start in range(0, len(arrays[columns[0]]), ROWS):
            yield {name: _rows(arrays[name][start : start + ROWS]) for name in columns}

    with _npz(file) as source:
        return RecordReader(tuple(source.files), chunks)


def _npz_arrays(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Load arrays of an npz file, `{name: array}`.

    Raises:
        TableError: the file is damaged or holds Python objects.
    """
    with _npz(file) as source:
        return {name: source[name] for name in names}


@contextlib.contextmanager
def _npz(file: Path) -> Iterator[Any]:
    """Return a context manager with an open npz file.

    Raises:
        TableError: the file is damaged or holds Python objects.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as source:
            yield source
    except MemoryError as error:
        problem = f"{file} says that it holds more than memory does ({one_line(error)[:160]})"
        raise TableError(f"{problem}. Write it again, or in parts: train-00000-of-00002.npz.") from None
    except Exception as error:  # foreign code: the zip archive, its compression, the headings of the arrays
        reason = "it may hold Python objects" if "allow_pickle" in str(error) else one_line(error)[:160]
        raise TableError(
            f"{file} is not an npz file of plain arrays ({reason}). Write it again with numpy.savez."
        ) from None


def _rows(array: np.ndarray) -> list[Any]:
    return array.tolist() if array.ndim == 1 else list(array)


def from_datasets(dataset: Any) -> RecordReader:
    """Return a reader for the records of a Hugging Face `datasets.Dataset`, with the class names that it defines."""
    names = {name: tuple(feature.names) for name, feature in dataset.features.items() if hasattr(feature, "int2str")}

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        for batch in dataset.select_columns(list(columns)).with_format("arrow").iter(ROWS):
            yield batch.to_pydict()

    return RecordReader(tuple(dataset.column_names), chunks, names)


READERS: Mapping[str, Callable[[Path, TextFormat], RecordReader]] = {
    ".csv": open_csv,
    ".tsv": open_tsv,
    ".jsonl": open_json_lines,
    ".ndjson": open_json_lines,
    ".parquet": open_parquet,
    ".npz": open_npz,
}
IMAGE = "Give the folder with the images, or a table with a column of their paths."
CURES = {  # suffixes that people try
    ".json": "Write one JSON object in each line, and call the file .jsonl.",
    ".txt": "Write a table with a column of texts: .csv, .tsv, .jsonl or .parquet.",
    ".xlsx": "Save the sheet as .csv.",
    **dict.fromkeys((".jpg", ".jpeg", ".png"), IMAGE),
}
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


def suffix_of(file: Path) -> str:
    """Return the suffix that names the format of a file: `.csv` for reviews.csv and for reviews.csv.gz."""
    path = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    return path.suffix.lower()


def open_file(file: Path, text_format: TextFormat) -> RecordReader:
    """Open a file of records by the format that its suffix names.

    Raises:
        TableError: the format is unknown, or the file cannot be read.
    """
    reader = READERS.get(suffix_of(file))
    if reader is None:
        cure = CURES.get(suffix_of(file), f"Give one of {', '.join(READERS)}.")
        raise TableError(f"{file} has the unknown format {suffix_of(file)!r}. {cure}")
    with file.open("rb") as stream:  # first: what a parser makes of compressed bytes depends on their date
        if stream.read(2) == b"\x1f\x8b" and file.suffix != ".gz":
            raise TableError(f"{file}: it is compressed. Give it a name that ends with .gz.")
    opened = reader(file, text_format)
    if doubled := [name for name in opened.columns if opened.columns.count(name) > 1]:
        raise TableError(f"{file} has two columns {doubled[0]!r}. Rename one of them.")
    return opened


def require_columns(opened: RecordReader, wanted: Mapping[str, Sequence[str]], file: object) -> None:
    """Require that a file has the columns that the arguments of a data set name.

    Args:
        opened: the file.
        wanted: for each argument, such as `text`, the names of the columns.
        file: the file, for the error message.

    Raises:
        TableError: a column is missing; the message names existing columns or another delimiter.
    """
    is_json = READERS.get(suffix_of(Path(str(file)))) is open_json_lines
    kind = "key of the first record" if is_json else "column"
    for argument, names in wanted.items():
        for name in names:
            if name not in opened.columns:
                raise TableError(f"{argument}: {name!r} is no {kind} of {file}. {_cure(name, opened.columns)}")


def _cure(name: str, columns: Sequence[str]) -> str:
    """Return the cure for a missing column, for an error message: existing columns, or another delimiter."""
    for delimiter in DELIMITERS:
        if len(columns) == 1 and delimiter in columns[0] and name in columns[0].split(delimiter):
            return f"Its values are separated by {delimiter!r}: name this delimiter."
    return suggest(name, columns)
