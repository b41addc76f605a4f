"""Checkpoints of the world as one thing: a config, names with shapes, and parts of arrays read on demand.

Nothing is ever unpickled: where only a pickle is found, the message says how to convert it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.hub_files import read_json


class Look(NamedTuple):
    """What is known of an array before it is read. dtype: "float32", "bfloat16", ... or what the file calls it."""

    shape: tuple[int, ...]
    dtype: str


class Source(Protocol):
    """A checkpoint that is open."""

    @property
    def where(self) -> str:
        """For messages."""

    @property
    def config(self) -> Mapping[str, Any]:
        """As transformers writes it, with `model_type`."""

    @property
    def arrays(self) -> Mapping[str, Look]:
        """Shape and dtype of every array, by name."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of an array, as a numpy array; of the whole file, nothing else is read."""


# What PyTorch's first BERTs called the arrays of a norm, as transformers reads them too.
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Safetensors:
    """A Hugging Face folder: `config.json`, and `model.safetensors` in one file or in shards with an index.

    Raises:
        WeightsError: no config, no weights, a pickle only, a missing shard, a damaged file.
    """

    def __init__(self, folder: Path):
        self.where = str(folder)
        self.config = read_json(folder / "config.json")
        self._files = {file: _open(file) for file in _weight_files(folder)}
        every = ((name, file) for file, tensors in self._files.items() for name in tensors.keys())  # noqa: SIM118
        self._home = {_current(name): (name, file) for name, file in every}
        slices = {name: self._slice(name) for name in self._home}
        self.arrays = {
            name: Look(tuple(s.get_shape()), DTYPES.get(s.get_dtype(), s.get_dtype())) for name, s in slices.items()
        }

    def _slice(self, name: str) -> Any:
        stored, file = self._home[name]
        return self._files[file].get_slice(stored)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of an array."""
        if index:
            return self._slice(name)[index]
        stored, file = self._home[name]
        return self._files[file].get_tensor(stored)


def _current(name: str) -> str:
    old = next((old for old in LEGACY if name.endswith(old)), "")
    return name.removesuffix(old) + LEGACY.get(old, "")


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "numpy")
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing: a shard that the index names") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is damaged ({error}); fetch it again") from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        except (KeyError, AttributeError):
            raise WeightsError(f"{index} has no weight_map") from None
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise WeightsError(f"{folder} holds {len(found)} safetensors files and no index; keep one, or add the index")
    pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]
    if pickles:
        cure = "convert it where it is trusted: model.save_pretrained(FOLDER, safe_serialization=True)"
        raise WeightsError(f"{folder} holds only a pickle ({pickles[0]}), which is never opened; {cure}")
    raise WeightsError(f"{folder} holds no safetensors file")
