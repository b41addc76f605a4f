"""Predict the records of a file, and write the predictions to another file, a few thousand records at a time."""

import contextlib
import csv
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.progress import progress
from jaxdistill.data.table.columns import Classes, Roles, converted
from jaxdistill.data.table.files import Opened, Problem, require_columns
from jaxdistill.data.table.locate import locate
from jaxdistill.export.predictor import Predictions, Predictor

Rows = dict[str, list[Any]]  # column -> values of a chunk
Write = Callable[[Rows], None]


def predict_file(
    predictor: Predictor, source: str, output: Path, columns: Mapping[str, Sequence[str]], encoding: str = "utf-8"
) -> int:
    """Write the predictions for all records of a file beside the records' own columns, and return their number.

    The output appears when it is complete. It gets the columns `prediction` and `confidence`, and in JSON lines,
    Parquet and npz also `probabilities`; for a model without classes `embedding`; for a language model `nll` and
    `perplexity`.

    Args:
        predictor: the model.
        source: a file or a folder of images, as in the data set `table`.
        output: the file to write: .csv, .tsv, .jsonl, .parquet or .npz.
        columns: columns of the source that the model reads, by argument of `table`: text, image, features.
        encoding: encoding of the source, if it is CSV, TSV or JSON lines.

    Raises:
        ConfigError: the source cannot be read, lacks a column or has a wrong value; or the output has another format.
    """
    writer = WRITERS.get(output.suffix.lower())
    if writer is None:
        raise ConfigError("--output", f"{str(output)!r} has an unknown format. Use one of {', '.join(WRITERS)}.")
    try:
        place, opened = _open(source, encoding)
        roles = _roles(predictor, columns, opened, place)
        count = 0
        with _replacing(output) as draft, writer(draft) as write:
            for chunk, fields in _chunks(opened, roles, place):
                records = [dict(zip(fields, row, strict=True)) for row in zip(*fields.values(), strict=True)]
                if roles.image:
                    records = [{"image": _image(record["image"], Path(place).parent)} for record in records]
                write(_plain(chunk) | _columns(predictor.predict(records), output.suffix.lower()))
                count += len(records)
        if not count:
            raise Problem(f"{place} has no records.")
        return count
    except Problem as problem:
        raise ConfigError("--input", str(problem)) from None


def _open(source: str, encoding: str) -> tuple[str, Opened]:
    sources = locate(source, encoding)
    if len(sources) > 1:
        raise Problem(f"{source!r} has the splits {', '.join(sources)}. Give the file of one of them.")
    (found,) = sources.values()
    return found.place, found.open()


def _roles(predictor: Predictor, columns: Mapping[str, Sequence[str]], opened: Opened, place: str) -> Roles:
    """Return which columns are read, and as what: those of the training data, unless others are given.

    Raises:
        Problem: a column is not there.
    """
    fields = predictor.text_fields
    default = {"text": fields} if fields else {"image": ("image",)}
    named = {**(columns or predictor.about.columns or default)}
    image = named.get("image", ())
    roles = Roles(tuple(named.get("text", ())), "", image[0] if image else "", tuple(named.get("features", ())))
    require_columns(opened, roles.named(), place)
    if len(roles.text) != len(fields):
        raise Problem(f"the model reads {len(fields)} texts ({', '.join(fields) or 'none'}); give as many with --text.")
    return roles


def _chunks(opened: Opened, roles: Roles, place: str) -> Iterator[tuple[Rows, dict[str, Any]]]:
    """Yield the chunks of a file, each as its own columns and as the fields that the model reads."""
    for chunk in progress(opened.chunks(opened.columns), f"Reading {place}"):
        (fields,) = converted(iter([chunk]), roles, Classes(), place)
        yield chunk, fields


def _image(image: Any, base: Path) -> Any:
    return str(base / image) if isinstance(image, str) else image


def _plain(chunk: Mapping[str, Sequence[Any]]) -> Rows:
    """Return the columns of a file whose values are texts, numbers or truth values."""
    plain = lambda value: value is None or isinstance(value, str | int | float)
    return {name: list(values) for name, values in chunk.items() if all(map(plain, values))}


def _columns(found: Predictions, suffix: str) -> Rows:
    """Return the columns of the output that hold the predictions.

    Raises:
        ConfigError: the predictions are vectors, and the format has no place for them.
    """
    if found.nll is not None:
        return {"nll": found.nll.tolist(), "perplexity": np.exp(np.float64(found.nll)).tolist()}
    vectors = suffix not in (".csv", ".tsv")
    if found.predicted is None and found.embeddings is not None:
        if not vectors:
            raise ConfigError("--output", f"a {suffix} file has no place for embeddings. Use .jsonl, .parquet or .npz.")
        return {"embedding": found.embeddings.tolist()}
    assert found.labels is not None and found.confidence is not None and found.probabilities is not None
    columns: Rows = {"prediction": found.labels, "confidence": found.confidence.tolist()}
    return columns | ({"probabilities": found.probabilities.tolist()} if vectors else {})


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Return a context manager with a path beside a file, which replaces the file when the block ends without an error.

    Raises:
        ConfigError: the folder of the file cannot be written.
    """
    draft = file.with_name(f".{file.stem}.{secrets.token_hex(4)}{file.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(file)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise ConfigError("--output", f"{str(file)!r} cannot be written ({error}). Choose another file.") from None
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _csv(file: Path, delimiter: str = ",") -> Iterator[Write]:
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, delimiter=delimiter)

        def write(rows: Rows) -> None:
            if not stream.tell():
                table.writerow(rows)
            table.writerows(zip(*rows.values(), strict=True))

        yield write


@contextlib.contextmanager
def _json_lines(file: Path) -> Iterator[Write]:
    with file.open("w", encoding="utf-8") as stream:

        def write(rows: Rows) -> None:
            for values in zip(*rows.values(), strict=True):
                stream.write(json.dumps(dict(zip(rows, values, strict=True)), ensure_ascii=False) + "\n")

        yield write


@contextlib.contextmanager
def _parquet(file: Path) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        opened: list[Any] = []

        def write(rows: Rows) -> None:
            chunk = pa.table(rows, schema=opened[0].schema if opened else None)
            if not opened:
                opened.append(stack.enter_context(parquet.ParquetWriter(file, chunk.schema)))
            opened[0].write_table(chunk)

        yield write


@contextlib.contextmanager
def _npz(file: Path) -> Iterator[Write]:
    parts: list[Rows] = []
    yield parts.append
    columns = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in (parts[0] if parts else ())}
    plain: Any = {name: values for name, values in columns.items() if values.dtype != object}
    np.savez(file, **plain)


WRITERS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".tsv": lambda file: _csv(file, "\t"),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".npz": _npz,
}
