"""Read the header of a GGUF file: its metadata, and the location of each tensor.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader of the package `gguf` is not used, because it
makes a NumPy array for each token of the vocabulary, which takes 160 MB and 1.7 s for 49,152 tokens.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxdistill.core.errors import WeightsError

NUMBERS = {  # metadata type: NumPy dtype
    0: "u1",
    1: "i1",
    2: "u2",
    3: "i2",
    4: "u4",
    5: "i4",
    6: "f4",
    7: "?",
    10: "u8",
    11: "i8",
    12: "f8",
}
STRING, ARRAY = 8, 9  # metadata types


class TensorEntry(NamedTuple):
    """The location and format of a tensor in a GGUF file.

    shape: shape of the tensor, slowest dimension first, as in NumPy
    encoding: dtype or quantisation of the values, a `gguf.GGMLQuantizationType`
    offset: distance in bytes from the start of the file to the first value
    size: number of bytes of the values
    """

    shape: tuple[int, ...]
    encoding: Any
    offset: int
    size: int


class Header(NamedTuple):
    """The contents of a GGUF header.

    fields: the metadata by key, such as `general.architecture`
    tensors: location and format of every tensor, by its name in llama.cpp
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]


def read_header(path: Path) -> Header:
    """Read the header of the GGUF file at `path`, and check that every tensor lies inside the file.

    Raises:
        WeightsError: the file does not exist, is not GGUF, is truncated, or has an unknown encoding.
    """
    try:
        with path.open("rb") as file:
            return _read(_Reader(file, str(path)))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from None


class _Reader:
    """A sequential reader of the primitive types of GGUF. It never reads past the end of the file."""

    def __init__(self, file: BinaryIO, path: str):
        self.file, self.path = file, path
        self.remaining = self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        if count > self.remaining:
            raise WeightsError(f"{self.path} is truncated, or damaged; download it again")
        self.remaining -= count
        return self.file.read(count)

    def numbers(self, dtype: str, count: int) -> np.ndarray:
        little_endian = np.dtype(dtype).newbyteorder("<")
        return np.frombuffer(self.take(count * little_endian.itemsize), little_endian)

    def number(self, dtype: str) -> Any:
        return self.numbers(dtype, 1)[0].item()

    def string(self) -> str:
        return self.take(self.number("u8")).decode("utf-8", errors="replace")

    def value(self, value_type: int) -> Any:
        if value_type == STRING:
            return self.string()
        if value_type in NUMBERS:
            return self.number(NUMBERS[value_type])
        if value_type != ARRAY:
            raise WeightsError(f"{self.path} is damaged: unknown metadata type {value_type}; download it again")
        item_type, count = self.number("u4"), self.number("u8")
        if item_type in NUMBERS:
            return self.numbers(NUMBERS[item_type], count).tolist()
        # An item has at least one byte: a damaged count cannot make the list longer than the file
        return [self.value(item_type) for _ in range(min(count, self.remaining))]


def _read(reader: _Reader) -> Header:
    if reader.remaining < 4 or reader.take(4) != b"GGUF":
        raise WeightsError(f"{reader.path} is not a GGUF file")
    version = reader.number("u4")
    if version not in (2, 3):
        raise WeightsError(f"{reader.path} has GGUF version {version}, not 2 or 3; convert the model again")
    tensor_count, field_count = reader.number("u8"), reader.number("u8")
    fields = {}
    for _ in range(field_count):
        name = reader.string()
        fields[name] = reader.value(reader.number("u4"))
    entries = [_read_entry(reader) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise WeightsError(f"{reader.path} is damaged: its alignment is {alignment!r}; download it again")
    start = -(-(reader.size - reader.remaining) // alignment) * alignment
    tensors = {name: entry._replace(offset=start + entry.offset) for name, entry in entries}
    if len(tensors) < len(entries):
        names = [name for name, _ in entries]
        twice = next(name for name in names if names.count(name) > 1)
        raise WeightsError(f"{reader.path} is damaged: it has two tensors {twice!r}; download it again")
    if any(tensor.offset + tensor.size > reader.size for tensor in tensors.values()):
        raise WeightsError(f"{reader.path} is truncated: its last values are missing; download it again")
    return Header(fields, tensors)


def _read_entry(reader: _Reader) -> tuple[str, TensorEntry]:
    """Read the name and the entry of one tensor. The offset in the entry counts from the start of the tensor data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = reader.string()
    shape = tuple(reversed(reader.numbers("u8", reader.number("u4")).tolist()))
    number, offset = reader.number("u4"), reader.number("u8")
    if not all(shape):
        raise WeightsError(f"{reader.path} is damaged: {name} has the shape {list(shape)}; download it again")
    try:
        encoding = GGMLQuantizationType(number)
    except ValueError:
        raise WeightsError(f"{reader.path}: {name} has the unknown encoding {number}; update gguf") from None
    block_values, block_bytes = GGML_QUANT_SIZES[encoding]
    return name, TensorEntry(shape, encoding, offset, math.prod(shape) // block_values * block_bytes)
