"""Find the images of a folder by class, and decode image files."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxdistill.core.errors import ConfigError, one_line
from jaxdistill.core.notes import note
from jaxdistill.data.table.record_reader import ROWS, Chunk, RecordReader, TableError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
IMAGE, LABEL = "image", "label"  # the columns of a folder of images


def open_class_folders(folder: Path) -> RecordReader:
    """Open a folder with one folder of images per class, as a table with the columns `image` and `label`.

    Every image is decoded once, so that a broken one is found before a model is trained.

    Raises:
        TableError: there are no such folders, or a class has no images.
    """
    classes = class_folders(folder)
    _note_skipped(sorted(folder.iterdir()))
    listed = {place.name: files_in(place) for place in classes}
    if empty := [name for name, files in listed.items() if not files]:
        raise TableError(f"{folder / empty[0]} has no images ({', '.join(SUFFIXES)}).")
    rows = [(str(file.absolute()), name) for name, files in listed.items() for file in files]
    return RecordReader((IMAGE, LABEL), lambda columns: _checked_chunks(rows))


def open_flat(folder: Path) -> RecordReader:
    """Open a folder of images without classes, as a table with the column `image`. Every image is decoded once."""
    rows = [(str(file.absolute()), "") for file in files_in(folder)]
    chunks = lambda columns: ({IMAGE: chunk[IMAGE]} for chunk in _checked_chunks(rows))
    return RecordReader((IMAGE,), chunks)


def _checked_chunks(rows: Sequence[tuple[str, str]]) -> Iterator[Chunk]:
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            for _ in threads.map(lambda row: decode(row[0], 3), part):
                pass
            yield {IMAGE: [file for file, _ in part], LABEL: [name for _, name in part]}


def class_folders(folder: Path) -> list[Path]:
    """Return the paths of the subfolders of a folder, sorted, without hidden ones such as `.git` and `__MACOSX`."""
    return sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith((".", "__")))


def files_in(folder: Path) -> list[Path]:
    """Return the paths of the image files in a folder and in all of its subfolders, sorted.

    Raises:
        TableError: an image file is a link to a file that does not exist.
    """
    all_files = sorted(folder.rglob("*"))
    named = [file for file in all_files if file.suffix.lower() in SUFFIXES]
    if lost := [file for file in named if file.is_symlink() and not file.exists()]:
        raise TableError(f"{lost[0]} is a link to a file that does not exist. Restore the file, or remove the link.")
    image_files = [file for file in named if file.is_file()]
    known = set(image_files)
    _note_skipped([file for file in all_files if file not in known])
    return image_files


def _note_skipped(places: Sequence[Path]) -> None:
    """Print a note about files that are not read, such as photos in an unknown format; hidden files do not count."""
    if files := [place for place in places if not (place.name.startswith(".") or place.is_dir())]:
        others = f" and {len(files) - 1:,} more files" * (len(files) > 1)
        note(f"{files[0]}{others}: skipped, because it is no image ({', '.join(SUFFIXES)}) in the folder of a class")


def decode(image: bytes | str, channels: int) -> np.ndarray:
    """Decode an image file to an array `[height, width, channels]` uint8, rotated upright as its EXIF data say.

    Grey values of 16 bits are scaled to 8 bits, as Pillow does for colours.

    Args:
        image: path or content of an image file.
        channels: 3 for RGB, 1 for grey values.

    Raises:
        ConfigError: the file is no image, it is damaged, or its pixels have 32 bits.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in ("I", "F"):
                raise ValueError("its pixels have 32 bits; convert it to 8 or 16")
            if upright.mode.startswith("I;16"):
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            pixels = np.asarray(upright.convert("RGB" if channels == 3 else "L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = "bytes of a record" if isinstance(image, bytes) else image
        problem = f"{name} cannot be read as an image ({one_line(error)[:160]})"
        raise ConfigError("data.name", f"{problem}. Replace the file, or remove it.") from None
    return pixels.reshape(*pixels.shape[:2], channels)
