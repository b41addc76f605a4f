"""Predict the records of a file, and write the predictions to another file, a few thousand records at a time."""

import contextlib
import csv
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core.atomic import new_file
from jaxdistill.core.errors import ConfigError, one_line
from jaxdistill.data.progress import progress
from jaxdistill.data.table import images
from jaxdistill.data.table.columns import Classes, ColumnNames, convert_chunks
from jaxdistill.data.table.files import require_columns
from jaxdistill.data.table.locate import locate
from jaxdistill.data.table.record_reader import Chunk, RecordReader, TableError, TextFormat
from jaxdistill.export.predictions import Predictions, RecordPredictor
from jaxdistill.export.predictor import PATH as RECORDS

Write = Callable[[Chunk], None]
TEXT_FORMAT = TextFormat()
IMAGES = "data.name"  # path of an error in an image that is read from a folder


def predict_file(
    predictor: RecordPredictor,
    source: str,
    output: Path,
    columns: Mapping[str, Sequence[str]],
    text_format: TextFormat = TEXT_FORMAT,
) -> int:
    """Predict all records of a file, write the predictions and the file's own columns to another file, and count them.

    The output appears when it is complete. A classifier adds the columns `prediction`, `confidence` and
    `probabilities`. The probabilities are a dict by class name in JSON lines and Parquet, and a vector in npz; CSV has
    none. A model without classes adds the column `embedding`, a language model `nll` and `perplexity`.

    Args:
        predictor: the model.
        source: a file or a folder of images, as in the data set `table`.
        output: the file to write: .csv, .tsv, .jsonl, .parquet or .npz.
        columns: columns of the source that the model reads, by argument of `table`: text, image, features. If it is
            empty, the columns of the training data are read.
        text_format: how the source is written, if it is CSV, TSV or JSON lines.

    Returns:
        The number of records.

    Raises:
        ConfigError: the source cannot be read, lacks a column or has a wrong value; or the output has another format.
    """
    check_format(output)
    writer = WRITERS[output.suffix.lower()]
    if output.is_dir():
        raise ConfigError("--output", f"{str(output)!r} is a folder. Choose a file.")
    output = output.resolve()  # follow links, so that the target is replaced and not the link
    try:
        place, opened = _open(source, text_format)
        if Path(place).exists() and output.exists() and output.samefile(place):
            raise ConfigError("--output", f"{str(output)!r} is the input. Choose another file.")
        column_names = _roles(predictor, columns, opened, place)
        count, kept = 0, None
        with _replacing(output) as draft, writer(draft) as write:
            for chunk in progress(opened.chunks(opened.columns), f"Predicting {place}"):
                kept = _kept(chunk) if kept is None else kept
                records = _records(predictor, chunk, column_names, place, count)
                plain = {name: [_plain(value) for value in chunk[name]] for name in kept}
                predictions = predictor.predict(records, first=count)
                added = _columns(predictions, predictor.class_names, output.suffix.lower())
                if taken := sorted(plain.keys() & added):
                    raise TableError(f"{place} has a column {taken[0]!r}, which the output adds. Rename it.")
                write(plain | added)
                count += len(records)
            if not count:
                raise TableError(f"{place} has no records.")
        return count
    except TableError as problem:
        raise ConfigError("--input", str(problem)) from None
    except ConfigError as error:
        if error.path == IMAGES:  # an image in a folder, whose path the message has
            raise ConfigError("--input", error.message) from None
        if error.path != RECORDS:
            raise
        raise ConfigError("--input", f"{source}, {error.message}") from None


def check_format(output: Path) -> None:
    """Require that predictions can be written in the format that the suffix of a file names.

    Raises:
        ConfigError: the suffix is not that of a supported format.
    """
    if output.suffix.lower() not in WRITERS:
        raise ConfigError("--output", f"{str(output)!r} has an unknown format. Use one of {', '.join(WRITERS)}.")


def _open(source: str, text_format: TextFormat) -> tuple[str, RecordReader]:
    sources = locate(source, text_format)
    if len(sources) > 1:
        raise TableError(f"{source!r} has the splits {', '.join(sources)}. Give the file of one of them.")
    (table_file,) = sources.values()
    return table_file.place, table_file.open()


def _roles(
    predictor: RecordPredictor, columns: Mapping[str, Sequence[str]], opened: RecordReader, place: str
) -> ColumnNames:
    """Return the columns that hold texts, images and features: those of the training data, unless others are given.

    Raises:
        TableError: a column does not exist or is named twice, or the columns do not fit those of the training.
    """
    fields = predictor.text_fields
    default = {"text": fields} if fields else {"image": ("image",)}
    named = {**(columns or predictor.about.columns or default)}
    image = named.get("image", ())
    column_names = ColumnNames(
        tuple(named.get("text", ())), "", image[0] if image else "", tuple(named.get("features", ()))
    )
    require_columns(opened, column_names.named(), place)
    if twice := next((name for names in named.values() for name in names if list(names).count(name) > 1), ""):
        raise TableError(f"the column {twice!r} is named twice. Name each column once.")
    trained = tuple(predictor.about.columns.get("features", ()))
    if column_names.features != trained and sorted(column_names.features) == sorted(trained):
        problem = f"the model was trained with the columns in the order {','.join(trained)}"
        raise TableError(f"{problem}. Give them so, or leave --features out.")
    if len(column_names.text) != len(fields):
        raise TableError(
            f"the model reads {len(fields)} texts ({', '.join(fields) or 'none'}); give as many with --text."
        )
    return column_names


def _records(
    predictor: RecordPredictor, chunk: Chunk, column_names: ColumnNames, place: str, first: int
) -> list[dict[str, Any]]:
    """Return the records of a chunk with the fields that the model reads.

    Raises:
        TableError: a value is missing or of another type, or an image is broken; the message says where.
    """
    (fields,) = convert_chunks(iter([chunk]), column_names, Classes(), place, first)
    # the first given column is the first text, and so on
    named = dict(zip(column_names.text_fields(), predictor.text_fields, strict=False))
    names = [named.get(field, field) for field in fields]
    records = [dict(zip(names, row, strict=True)) for row in zip(*fields.values(), strict=True)]
    for number, record in enumerate(records, first):
        image = record.get("image")
        if isinstance(image, str | bytes):
            path = str(Path(place).parent / Path(image).expanduser()) if isinstance(image, str) else image
            try:
                record["image"] = images.decode(path, predictor.about.channels)
            except ConfigError as error:
                raise TableError(f"{place}, record {number}: {error.message}") from None
    return records


def _kept(chunk: Chunk) -> list[str]:
    """Return the names of the input's columns that the output repeats: all but columns with bytes or arrays."""
    return [name for name, values in chunk.items() if not any(isinstance(x, bytes | np.ndarray) for x in values)]


def _plain(value: Any) -> Any:
    """Convert a value to one that all output formats can hold: text, number, boolean or None; a list becomes JSON."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode("utf-8")
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)  # such as a date


def _columns(predictions: Predictions, class_names: Sequence[str], suffix: str) -> Chunk:
    """Return the columns with the predictions that the output gets, a dict of lists by column name.

    Raises:
        ConfigError: the model gives embeddings, and the format `suffix` cannot hold vectors.
    """
    if predictions.nll is not None:
        known = lambda values: [value if math.isfinite(value) else None for value in values.tolist()]
        return {"nll": known(predictions.nll), "perplexity": known(np.exp(np.float64(predictions.nll)))}
    vectors = suffix not in (".csv", ".tsv")
    if predictions.predicted is None and predictions.embeddings is not None:
        if not vectors:
            raise ConfigError("--output", f"a {suffix} file has no place for embeddings. Use .jsonl, .parquet or .npz.")
        return {"embedding": predictions.embeddings.tolist()}
    labels, confidence = predictions.labels, predictions.confidence
    assert labels is not None and confidence is not None and predictions.probabilities is not None
    columns: Chunk = {"prediction": labels, "confidence": confidence.tolist()}
    probabilities: list[Any] = predictions.probabilities.tolist()
    if suffix in (".jsonl", ".parquet") and class_names:
        probabilities = [dict(zip(class_names, row, strict=False)) for row in probabilities]
    return columns | ({"probabilities": probabilities} if vectors else {})


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file; what is written there replaces the file if the block ends without an error.

    Raises:
        ConfigError: the folder of the file cannot be written.
    """
    places = {file.absolute(), *file.absolute().parents}
    try:
        with new_file(file) as draft:
            places.add(draft.absolute())
            yield draft
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError, FileNotFoundError) as error:
        if error.filename and Path(error.filename).absolute() not in places:
            raise
        raise ConfigError("--output", f"{str(file)!r} cannot be written ({error}). Choose another file.") from None


@contextlib.contextmanager
def _csv(file: Path, delimiter: str = ",") -> Iterator[Write]:
    with file.open("w", newline="", encoding="utf-8", errors="replace") as stream:
        table = csv.writer(stream, delimiter=delimiter)

        def write(rows: Chunk) -> None:
            if not stream.tell():
                table.writerow(rows)
            table.writerows(zip(*rows.values(), strict=True))

        yield write


@contextlib.contextmanager
def _json_lines(file: Path) -> Iterator[Write]:
    with file.open("w", encoding="utf-8", errors="replace") as stream:

        def write(rows: Chunk) -> None:
            for values in zip(*rows.values(), strict=True):
                row = {name: None if value != value else value for name, value in zip(rows, values, strict=True)}
                stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")  # JSON has no NaN

        yield write


@contextlib.contextmanager
def _parquet(file: Path) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    def column(name: str, values: list[Any], kind: Any) -> Any:
        """Convert the values of a column to an Arrow array of type `kind`; for the first chunk, `kind` is None."""
        try:
            if kind is None:
                array = pa.array(values)
                return array.cast(pa.string()) if pa.types.is_null(array.type) else array
            if pa.types.is_string(kind):
                return pa.array([value if value is None else str(value) for value in values], kind)
            return pa.array(values).cast(kind, safe=True)
        except (pa.ArrowException, OverflowError) as error:
            problem = f"the column {name!r} has values of several types or beyond 64 bits ({one_line(error)[:120]})"
            raise ConfigError("--output", f"{problem}; Parquet has one type for each. Use .jsonl.") from None

    with contextlib.ExitStack() as stack:
        opened: list[Any] = []

        def write(rows: Chunk) -> None:
            kinds = {field.name: field.type for field in opened[0].schema} if opened else {}
            table = pa.table({name: column(name, values, kinds.get(name)) for name, values in rows.items()})
            if not opened:
                opened.append(stack.enter_context(parquet.ParquetWriter(file, table.schema)))
            opened[0].write_table(table)

        yield write


@contextlib.contextmanager
def _npz(file: Path) -> Iterator[Write]:
    parts: list[Chunk] = []
    yield parts.append
    with zipfile.ZipFile(file, "w") as archive:  # `numpy.savez` takes no array called `file`
        for name in parts[0] if parts else ():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, _array([x for part in parts for x in part[name]]), allow_pickle=False)


EXACT = 2**53  # float64 holds no greater whole number exactly


def _array(values: Sequence[Any]) -> np.ndarray:
    """Convert the values of a column to an array of numbers or texts; a missing value becomes NaN, or an empty text."""
    has_gap = any(value is None for value in values)
    too_large = lambda value: has_gap and isinstance(value, int) and abs(value) > EXACT
    as_text = any(isinstance(value, str) or too_large(value) for value in values)
    if as_text:
        return np.asarray(["" if value is None else str(value) for value in values])
    return np.asarray([math.nan if value is None else value for value in values])


WRITERS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".tsv": lambda file: _csv(file, "\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".npz": _npz,
}
