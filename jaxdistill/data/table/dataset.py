"""The data set `table`: records from a user's own files, with texts, images or numbers, and labels.

Config: data.name = "table(path='reviews.csv', text='review', label='stars')"
"""

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.atomic import new_folder, remove_folder
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.memory import free_disk, require
from jaxdistill.core.notes import note
from jaxdistill.core.registry import datasets
from jaxdistill.data.progress import progress
from jaxdistill.data.splits import SplitError, choose_held_out, select_rows, split_names
from jaxdistill.data.table import arrow_store, images
from jaxdistill.data.table.arrow_store import ArrowFile, TableManifest
from jaxdistill.data.table.columns import Classes, ColumnNames, convert_chunks
from jaxdistill.data.table.files import require_columns
from jaxdistill.data.table.locate import TEST, TRAIN, UNLABELLED, Source, locate
from jaxdistill.data.table.record_reader import RecordReader, TableError, TextFormat
from jaxdistill.data.table.table_records import TableRecords

RESERVED = {"attention_mask", "image", "index", "input_ids", "label", "label_probs", "mask", "token_type_ids"}
FORMAT = 1  # version of the files; a new number makes them anew
FOLDER_COLUMNS = ColumnNames((), images.LABEL, images.IMAGE, ())  # of a folder of images by class


@datasets.register
def table(
    split: str,
    folder: Path,
    path: str,
    text: str | tuple[str, ...] = (),
    label: str = "",
    image: str = "",
    features: str | tuple[str, ...] = (),
    test: float = 0.2,
    seed: int = 0,
    channels: int = 3,
    encoding: str = "utf-8",
    delimiter: str = "",
) -> "TableRecords":
    """Read your own files: CSV, TSV, JSON lines, Parquet, npz, a folder of images, or a data set of Hugging Face.

    `path` is one of these:

    - a file, from which a share is held out as the split `test`, with the same share of every class;
    - a folder with one file for each split, or with several such as `train-00000-of-00002.parquet`;
    - a path with `{split}`, such as `data/{split}.csv`; the splits may be train, test,
       unlabelled, validation, valid, val and dev;
    - a folder with one folder of images per class, or with such folders inside its folders `train` and `test`;
    - a folder of images only, whose records have no labels;
    - a folder that the package `datasets` has saved, or the name of a data set on the Hugging Face hub.

    Labels are words or whole numbers; they appear as class names in tables, reports and the exported model.
    Records whose label is empty form the split `unlabelled`. A student can learn from a teacher on this split, because
    distillation needs no labels. If the argument `label` is empty, no record has a label, and models are only compared
    with the teacher. The files are read once, into the folder of prepared data. They need not fit into memory, except
    for the arrays of an npz file.

    Args:
        split: split of the records, from the config, such as `train` or `train[:80%]`.
        folder: folder of prepared data, from the config.
        path: where the records are, see above.
        text: column of texts, which becomes the field `text`; or several columns, such as a pair, which keep their
            names for `sentences(tokenizer=..., fields=(...))`.
        label: column of the labels. A folder of images needs none.
        image: column of images: paths, from the file's folder, or contents of image files; in npz pixels
            `[records, height, width, channels]`. A folder of images needs none.
        features: columns of numbers, or an npz array `[records, numbers]`; they become one vector per record, in the
            field `image`, the input of all models that do not read texts.
        test: share of the records that are held out as the split `test`, if there are no files for it.
        seed: random seed for the choice of these test records.
        channels: 3 for RGB images, 1 for grey values.
        encoding: encoding of CSV, TSV and JSON lines, such as `latin-1`.
        delimiter: character between two values of a line, such as `;`; if empty, a comma in CSV and a tab in TSV.

    Raises:
        ValueError: a file cannot be read, a column is missing, or a value is wrong; the message says where.
    """
    columns = lambda names: (names,) if isinstance(names, str) else names
    column_names = ColumnNames(columns(text), label, image, columns(features))
    if not 0 < test < 1:
        raise ValueError(f"test={test} must be between 0 and 1: the share of the records that are held out")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} must be between 0 and 2^63 - 1")
    for argument, names in column_names.named().items():
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise TableError(f"{argument}: the column {twice!r} is named twice. Name each column once.")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels} must be 1 or 3")
    if len(column_names.text) > 1 and (taken := RESERVED & {*column_names.text}):
        raise TableError(f"a column of several texts cannot be called {min(taken)!r}, a field of batches. Rename it.")
    sources = locate(path, TextFormat(encoding, delimiter))
    opened = {name: source.open() for name, source in sources.items()}
    is_class_folder = not any(column_names.named())
    column_names = _complete(column_names, opened[TRAIN], sources[TRAIN].place)
    contents = {name: source.fingerprint() for name, source in sources.items()}
    manifest, files = _stored(sources, opened, column_names, contents, folder)
    parts = _splits(files, column_names, test, seed, sources)
    if UNLABELLED in split_names(split) and UNLABELLED not in parts:
        raise SplitError(
            split, "Every record has a label: learn from them with the preset 'text', or leave some empty."
        )
    chosen = [(name, np.asarray(rows)) for name, rows in select_rows(split, {n: len(r) for n, (_, r) in parts.items()})]
    rows = [(files[parts[name][0]], parts[name][1][numbers]) for name, numbers in chosen]
    places = {name: sources[parts[name][0]].place for name, _ in chosen}
    have_labels = [_labelled(*part, places[name]) for (name, _), part in zip(chosen, rows, strict=True)]
    labelled = all(have_labels)
    base = Path(sources[TRAIN].place).expanduser().parent
    about = [
        FORMAT,
        contents,
        column_names,
        manifest.classes,
        split,
        test,
        seed,
        channels,
        "" if is_class_folder or not image else _images_hash(rows, list(places.values()), base),
    ]
    fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    sizes = {name: len(numbers) for name, (_, numbers) in parts.items()}
    return TableRecords(rows, manifest.classes, labelled, fingerprint, base, channels, sizes)


def _labelled(file: ArrowFile, rows: np.ndarray, place: str) -> bool:
    """Return True if all records of a split have labels, and False if none of them has one.

    Raises:
        TableError: some records have a label, and others have none.
    """
    classes = file.labels()
    empty = np.flatnonzero(classes[rows] < 0) if classes is not None else rows
    if len(empty) not in (0, len(rows)):
        raise TableError(
            f"{place}: record {rows[empty[0]]} has no label, and others have one. Label all, or leave it out."
        )
    return not len(empty)


def _images_hash(parts: Sequence[tuple[ArrowFile, np.ndarray]], places: Sequence[str], base: Path) -> str:
    """Return a hash of the paths, sizes and modification times of the image files that the records name.

    Raises:
        TableError: an image file does not exist.
    """
    digest = hashlib.sha256()
    for (file, rows), place in zip(parts, places, strict=True):
        for start in range(0, len(rows), 4096):
            numbers = rows[start : start + 4096]
            for number, record in zip(numbers, file.take(numbers), strict=True):
                if not isinstance(record["image"], str):
                    continue
                try:
                    stat = (base / Path(record["image"]).expanduser()).stat()
                except OSError as error:
                    raise TableError(f"{place}, record {number}: {error.strerror}: {record['image']!r}.") from None
                digest.update(f"{record['image']} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _complete(column_names: ColumnNames, opened: RecordReader, place: str) -> ColumnNames:
    """Require that the named columns exist, and return them; for a folder of images, return the columns that it has.

    Raises:
        TableError: a column is missing, there is no column for a model to read, or the uses of columns conflict.
    """
    if not any(column_names.named()) and opened.columns == (images.IMAGE, images.LABEL):
        return FOLDER_COLUMNS
    if not any(column_names.named()) and opened.columns == (images.IMAGE,):
        return FOLDER_COLUMNS._replace(label="")
    require_columns(opened, column_names.named(), place)
    if not (column_names.text or column_names.image or column_names.features):
        known = ", ".join(opened.columns)
        raise TableError(f"name the columns to learn from, as text=, image= or features=. {place} has {known}.")
    if column_names.label and column_names.label in (*column_names.text, column_names.image, *column_names.features):
        problem = f"the model would read the label {column_names.label!r}"
        raise TableError(f"{problem}. Take it out of text=, image= or features=.")
    if column_names.image and column_names.features:
        raise TableError("image and features cannot be combined; both become the field 'image'.")
    return column_names


def _stored(
    sources: Mapping[str, Source],
    opened: Mapping[str, RecordReader],
    column_names: ColumnNames,
    contents: Mapping[str, str],
    folder: Path,
) -> tuple[TableManifest, dict[str, ArrowFile]]:
    """Return the records as Arrow files by split, with their description; write the files if no earlier run has.

    Raises:
        TableError: a source cannot be read, or has a wrong value.
        ConfigError: the folder of prepared data cannot be written, or its disk is too small.
    """
    key = hashlib.sha256(json.dumps([FORMAT, contents, column_names]).encode()).hexdigest()[:16]
    place = folder / "tables" / key
    for _ in range(2):  # another process may remove what it found damaged just when this one has replaced it
        try:
            return arrow_store.open_tables(place)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except DamageError as error:
            note(f"{error}; reading {sources[TRAIN].place} again")
            remove_folder(place)
        files = [Path(source.place) for source in sources.values()]
        size = sum(file.stat().st_size for file in files if file.is_file())
        require(
            {f"a copy of {files[0]}": ("data.folder", size)}, free_disk(place), "Choose another folder", "disk space"
        )
        try:
            with new_folder(place) as draft:
                _write(draft, key, sources, opened, column_names)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise ConfigError("data.folder", f"{place} cannot be written ({error}); choose another folder.") from None
    return arrow_store.open_tables(place)


def _write(
    draft: Path, key: str, sources: Mapping[str, Source], opened: Mapping[str, RecordReader], column_names: ColumnNames
) -> None:
    """Write the records of all splits as Arrow files, training records first, because their labels define the classes.

    Other splits may lack the column of labels. `key` is a hash of the sources, and the later name of the folder.
    """
    classes = Classes(opened[TRAIN].class_names.get(column_names.label, ()))
    shapes, total, begin = {}, 0, time.perf_counter()
    for split in sorted(sources, key=lambda name: name != TRAIN):
        place, file = sources[split].place, draft / f"{split}.arrow"
        unlabelled = split == UNLABELLED or (split != TRAIN and column_names.label not in opened[split].columns)
        wanted = column_names._replace(label="") if unlabelled else column_names
        require_columns(opened[split], wanted.named(), place)
        chunks = progress(opened[split].chunks(wanted.columns()), f"Reading {place}")
        count, shapes[split] = arrow_store.write_file(file, convert_chunks(chunks, wanted, classes, place))
        if not count:
            raise TableError(f"{place} has no records.")
        total += count
        if split == TRAIN:
            names, places = classes.finish(place, count) if column_names.label else ((), [])
            if warning := classes.doubtful_labels():
                note(f"{place}: {warning}")
    files = {split: seal.sha256(draft / f"{split}.arrow") for split in sources}
    manifest = TableManifest(files, shapes, list(names), places)
    seal.write(draft / arrow_store.MANIFEST, {**manifest._asdict(), "key": key})
    if time.perf_counter() - begin > 1:
        sys.stderr.write(
            f"Read {total:,} records of {sources[TRAIN].place} into {draft.parents[1]}; this happens once.\n"
        )


Parts = dict[str, tuple[str, np.ndarray]]  # split -> the file that has its records, and their numbers in it


def _splits(
    files: Mapping[str, ArrowFile], column_names: ColumnNames, test: float, seed: int, sources: Mapping[str, Source]
) -> Parts:
    """Return the Arrow file and the record numbers of each split, as a dict by split name.

    The splits `test` and `unlabelled` are taken from the training records if they have no files.

    Raises:
        TableError: a training record has no label although there is a file for the split `unlabelled`, or there are too
            few records to hold some out.
    """
    parts: Parts = {split: (split, np.arange(len(file))) for split, file in files.items()}
    classes, (name, rows) = files[TRAIN].labels(), parts[TRAIN]
    if classes is not None and (classes < 0).any():
        if UNLABELLED in files:
            problem = (
                f"record {int(np.argmax(classes < 0))} has no label, and there is a file for the split 'unlabelled'"
            )
            raise TableError(f"{sources[TRAIN].place}: {problem}. Move such records there.")
        parts[UNLABELLED] = TRAIN, rows[classes < 0]
        rows = rows[classes >= 0]
        parts[TRAIN] = TRAIN, rows
    if TEST not in files:
        held_out = choose_held_out(np.zeros(len(rows), int) if classes is None else classes[rows], test, seed)
        if held_out.all() or not held_out.any():
            place = sources[TRAIN].place
            raise TableError(f"{place} has too few records ({len(rows)}) to hold {test:g} of them out as test records.")
        parts[TRAIN], parts[TEST] = (name, rows[~held_out]), (name, rows[held_out])
    return parts
