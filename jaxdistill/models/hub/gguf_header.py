"""The header of a GGUF file: metadata, and where each tensor lies.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Our own, since the reader of the package `gguf` keeps an
array for every token of the vocabulary: 160 MB and 1.7 s for one of 49,152.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxdistill.core.errors import WeightsError

NUMBERS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
STRING, ARRAY = 8, 9


class Stored(NamedTuple):
    """A tensor as it lies in the file.

    shape: slowest dimension first, as numpy counts them
    kind: how its values are encoded
    offset: from the start of the file, in bytes
    size: in bytes
    """

    shape: tuple[int, ...]
    kind: Any
    offset: int
    size: int


class Header(NamedTuple):
    """What stands before the values."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def read_header(path: Path) -> Header:
    """Reads the header, and checks that every tensor lies inside the file.

    Raises:
        WeightsError: no such file, no GGUF, cut short, or an encoding that is not known.
    """
    try:
        with path.open("rb") as file:
            return _read(_Bytes(file, str(path)))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from None


class _Bytes:
    """A file read front to back, never past its end."""

    def __init__(self, file: BinaryIO, where: str):
        self.file, self.where = file, where
        self.left = self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise WeightsError(f"{self.where} is cut short, or damaged; fetch it again")
        self.left -= count
        return self.file.read(count)

    def numbers(self, kind: str, count: int) -> np.ndarray:
        dtype = np.dtype(kind).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def number(self, kind: str) -> Any:
        return self.numbers(kind, 1)[0].item()

    def string(self) -> str:
        return self.take(self.number("u8")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise WeightsError(f"{self.where} is damaged: there is no metadata of type {kind}; fetch it again")
        kind, count = self.number("u4"), self.number("u8")
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind], count).tolist()
        return [self.value(kind) for _ in range(min(count, self.left))]


def _read(data: _Bytes) -> Header:
    if data.left < 4 or data.take(4) != b"GGUF":
        raise WeightsError(f"{data.where} is no GGUF file")
    version = data.number("u4")
    if version not in (2, 3):
        raise WeightsError(f"{data.where} is GGUF version {version}; 2 and 3 are read, so convert it anew")
    tensor_count, field_count = data.number("u8"), data.number("u8")
    fields = {}
    for _ in range(field_count):
        name = data.string()
        fields[name] = data.value(data.number("u4"))
    described = [_describe(data) for _ in range(tensor_count)]
    grain = fields.get("general.alignment", 32)
    if not isinstance(grain, int) or grain < 1:
        raise WeightsError(f"{data.where} is damaged: its alignment is {grain!r}; fetch it again")
    start = -(-(data.size - data.left) // grain) * grain
    tensors = {name: stored._replace(offset=start + stored.offset) for name, stored in described}
    if any(stored.offset + stored.size > data.size for stored in tensors.values()):
        raise WeightsError(f"{data.where} is cut short: its last values are missing; fetch it again")
    return Header(fields, tensors)


def _describe(data: _Bytes) -> tuple[str, Stored]:
    """A tensor's entry; its offset counts from the first tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = data.string()
    shape = tuple(reversed(data.numbers("u8", data.number("u4")).tolist()))
    number, offset = data.number("u4"), data.number("u8")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise WeightsError(f"{data.where}: the encoding {number} of {name} is not known; update gguf") from None
    values, size = GGML_QUANT_SIZES[kind]
    return name, Stored(shape, kind, offset, math.prod(shape) // values * size)
