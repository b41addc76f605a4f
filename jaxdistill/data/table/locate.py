"""Find the files behind the path of a user's data: one file, one for each split, a folder of images, a hub name."""

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.core import seal
from jaxdistill.core.errors import one_line
from jaxdistill.data.table import images
from jaxdistill.data.table.files import READERS, from_datasets, open_file, suffix_of
from jaxdistill.data.table.record_reader import RecordReader, TableError, TextFormat, check_text_format

TRAIN, TEST, UNLABELLED = "train", "test", "unlabelled"
SPLITS = (TRAIN, TEST, UNLABELLED, "validation", "valid", "val", "dev")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
PART = re.compile(r"[A-Za-z]+-\d+(-of-\d+)?")  # of a split in several files: train-00000-of-00002
MOST_BYTES = 4096  # of a path, in Linux
NAME = "{split}"  # stands for the name of a split in a path


class Source(NamedTuple):
    """The records of one split, before they are read.

    place: file or folder, for error messages
    open: function without arguments that opens the records
    fingerprint: function that returns a text which changes if the records change
    """

    place: str
    open: Callable[[], RecordReader]
    fingerprint: Callable[[], str]


def locate(path: str, text_format: TextFormat) -> Mapping[str, Source]:
    """Find the user's records behind a path, and return the source (records that are not read yet) of each split.

    The result is a dict by split name. Data without splits are the split `train`.

    Args:
        path: a file; a path with `{split}`; a folder with a file or a folder of images for each split; a folder with a
            folder of images for each class; a folder that `datasets` has saved; or the name of a data set on the
            Hugging Face hub.
        text_format: encoding and delimiter of text files.

    Raises:
        TableError: there is no such file, its format is unknown, or a split has two files.
    """
    check_text_format(text_format)
    path = path.removeprefix("hf://datasets/")  # as other libraries write a name of the hub
    if not path.strip() or len(path.encode()) >= MOST_BYTES:
        raise TableError(f"path={path[:60]!r} is {'empty' if not path.strip() else 'too long'}. Name a file or folder.")
    if NAME in path:
        return _by_pattern(path, text_format)
    place = Path(path).expanduser()
    if place.is_file():
        return {TRAIN: _file(place, text_format)}
    if place.is_dir():
        return _in_folder(place, text_format)
    if suffix_of(place) in READERS or not HUB_NAME.fullmatch(path):
        raise TableError(f"path={path!r}: {_absent(place)}.")
    return _datasets(path)


def _absent(place: Path) -> str:
    """Return the part of an error message that says why a path is neither a file nor a folder."""
    if place.is_symlink() and not place.exists():
        return "this is a link to a file that does not exist"
    if place.exists():
        return "this is neither a file nor a folder, but a device or a pipe; write its content to a file"
    return f"there is no such file or folder{_neighbours(place)}"


def _neighbours(place: Path) -> str:
    """Return the part of an error message that suggests a similar file name, or lists the files in the same folder."""
    folder = place.parent
    names = sorted(file.name for file in folder.iterdir() if file.suffix) if folder.is_dir() else []
    close = difflib.get_close_matches(place.name, names, n=1, cutoff=0.8)
    meant = f". Did you mean {close[0]!r}? It" if close else f"; {folder.absolute()}"
    others = [name for name in names if name not in close][:8]
    beside = f" lies in {folder.absolute()}" if close else f" has {', '.join(others)}"
    return meant + beside if names else ""


def _file(file: Path, text_format: TextFormat) -> Source:
    fingerprint = lambda: " ".join((seal.sha256_once(file), *text_format))
    return Source(str(file), lambda: open_file(file, text_format), fingerprint)


def _files(files: Sequence[Path], text_format: TextFormat) -> Source:
    """Return a source that reads several files one after the other, such as train-00000-of-00002.parquet."""
    sources = [_file(file, text_format) for file in files]
    if len(sources) == 1:
        return sources[0]

    def opened() -> RecordReader:
        readers = [source.open() for source in sources]
        for file, reader in zip(files, readers, strict=True):
            if reader.columns != readers[0].columns:
                raise TableError(f"{file} has other columns than {files[0]}: {', '.join(reader.columns)}.")
        return readers[0]._replace(chunks=lambda names: chain.from_iterable(each.chunks(names) for each in readers))

    return Source(f"{files[0]} and {len(files) - 1} more", opened, lambda: " ".join(x.fingerprint() for x in sources))


def _by_pattern(path: str, text_format: TextFormat) -> Mapping[str, Source]:
    places = {name: Path(path.replace(NAME, name)).expanduser() for name in SPLITS}
    files = {name: _file(place, text_format) for name, place in places.items() if place.is_file()}
    if TRAIN not in files:
        raise TableError(f"path={path!r}: there is no {path.replace(NAME, TRAIN)!r}, for the training records.")
    return files


def _in_folder(folder: Path, text_format: TextFormat) -> Mapping[str, Source]:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _datasets(str(folder))
    tables = [file for file in sorted(folder.iterdir()) if file.is_file() and suffix_of(file) in READERS]
    files: dict[str, list[Path]] = {}
    for file in tables:
        name, is_part, _ = file.name.partition(".")[0].partition("-")
        if name in SPLITS and (not is_part or PART.fullmatch(file.name.partition(".")[0])):
            files.setdefault(name, []).append(file)
    for name, several in files.items():
        parts_alone = all("-" in file.name for file in several) and len({suffix_of(file) for file in several}) == 1
        if len(several) > 1 and not parts_alone:
            raise TableError(f"the split {name!r} has two files, {several[0]} and {several[1]}. Remove or rename one.")
    if files:
        if TRAIN not in files:
            raise TableError(f"{folder} has no file for the split 'train', such as train.csv.")
        if others := sorted({file.name for file in tables} - {file.name for each in files.values() for file in each}):
            raise TableError(f"{folder} has {others[0]!r}, which is no split. Splits are {', '.join(SPLITS)}.")
        return {name: _files(several, text_format) for name, several in files.items()}
    parts = {place.name: place for place in images.class_folders(folder)}
    if not parts and images.files_in(folder):
        return {TRAIN: Source(str(folder), lambda: images.open_flat(folder), lambda: _listing_hash(folder))}
    if not parts:
        raise TableError(
            f"{folder} has neither a file for a split, such as train.csv, nor a folder of images for a class."
        )
    if TRAIN in parts and (others := sorted(set(parts) - set(SPLITS))):
        known = ", ".join(SPLITS)
        raise TableError(
            f"{folder} has the folder {others[0]!r} beside 'train', which is no split. Splits are {known}."
        )
    if TRAIN in parts:
        return {name: _images(place) for name, place in parts.items()}
    return {TRAIN: _images(folder)}


def _images(folder: Path) -> Source:
    return Source(str(folder), lambda: images.open_class_folders(folder), lambda: _listing_hash(folder))


def _listing_hash(folder: Path) -> str:
    """Return a hash of the names, sizes and modification times of all files in a folder, whose content is not read."""
    digest = hashlib.sha256(str(folder.absolute()).encode())
    for file in sorted(_inside(folder, set())):
        stat = file.stat() if file.exists() else file.lstat()  # a link that leads nowhere is told when it is read
        digest.update(f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def _inside(folder: Path, known: set[Path]) -> Iterator[Path]:
    """Yield all files and folders below a folder; links are followed, but not to a folder that is `known` already."""
    known.add(folder.resolve())
    for place in folder.iterdir():
        yield place
        if place.is_dir() and place.resolve() not in known:
            yield from _inside(place, known)


def _datasets(name: str) -> Mapping[str, Source]:
    """Load a saved folder or a hub name with Hugging Face `datasets`, and return the source of each split."""
    try:
        import datasets
    except ImportError:
        raise TableError(f"path={name!r} needs the package datasets: pip install 'jaxdistill[datasets]'") from None
    try:
        dataset = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # foreign code: no network, no such repository, damaged files
        problem = "is no local file, and cannot be loaded by datasets"
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        cure = "Correct the path; or, for a name of the Hugging Face hub, connect this machine to the network"
        raise TableError(f"path={name!r} {problem} ({reason}). {cure}.") from None
    splits: dict[str, Any] = dict(dataset) if isinstance(dataset, datasets.DatasetDict) else {TRAIN: dataset}
    return {split: _dataset(name, split, part) for split, part in splits.items()}


def _dataset(name: str, split: str, dataset: Any) -> Source:
    local = f" {_listing_hash(Path(name))}" if Path(name).is_dir() else ""
    return Source(f"{name} ({split})", lambda: from_datasets(dataset), lambda: f"{dataset._fingerprint}{local}")
