"""Read checkpoints of all formats through one protocol: a config, the shapes of all arrays, and arrays on demand.

The protocol is `Source`. No pickle is loaded here; if a folder has only a pickle, the error says how to convert it.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import WeightsError, as_weights_error
from jaxdistill.core.hub_files import read_json
from jaxdistill.core.notes import note
from jaxdistill.models.hub.family import POOLING


class ArrayInfo(NamedTuple):
    """Shape and dtype of an array in a checkpoint.

    shape: the array's shape in the file
    dtype: NumPy's name of a float type, "float32", "bfloat16", ...; for any other type, the name that the file uses
    """

    shape: tuple[int, ...]
    dtype: str


@runtime_checkable
class Source(Protocol):
    """The protocol of an open checkpoint: a config, the shapes of all arrays, and arrays that are read on demand."""

    @property
    def path(self) -> str:
        """The path of the checkpoint, for error messages."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of the checkpoint in the format of transformers, with the key `model_type`."""

    @property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """Shape and dtype of every array in the checkpoint, by name."""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part of an array, without reading the rest of the file.

        Args:
            name: a key of `arrays`.
            index: one slice per axis, or empty for the whole array.
        """


# Names of norm weights in the first BERT checkpoints for PyTorch; transformers converts them too
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
INDEX = "model.safetensors.index.json"
POOLING_FILE = "1_Pooling/config.json"
POOLING_MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a Hugging Face folder as a dict.

    If the folder is one of sentence-transformers and pools tokens by "cls" or "mean", the dict has this mode under the
    key `POOLING`.

    Raises:
        WeightsError: a file is missing or damaged.
        DamageError: the folder was written by jaxdistill, and a file has changed since.
    """
    config, file = read_json(folder / "config.json"), folder / POOLING_FILE
    seal.check_in_folder(file, root=folder, listed=True)
    if not file.is_file():
        return config
    modes = read_json(file)
    chosen = [name for name, key in POOLING_MODES.items() if modes.get(key)]
    if len(chosen) == 1:
        return {**config, POOLING: chosen[0]}
    note(f"{file} pools tokens in a way that this library lacks; an embedding is their mean unless pool= is set")
    return config


class Safetensors:
    """A checkpoint in a Hugging Face folder, whose arrays are read on demand (a `Source`).

    The folder has a `config.json`, and one safetensors file or several with an index.

    Raises:
        WeightsError: the config or a weights file is missing, the weights are a pickle, or a file is damaged.
        DamageError: the folder was written by jaxdistill, and a file has changed since.
    """

    def __init__(self, folder: Path):
        self.path = str(folder)
        self.config = read_config(folder)
        weight_files = _weight_files(folder)
        seal.check_in_folder(*weight_files, folder / INDEX, listed=True)
        self._files = {file: _open(file) for file in weight_files}
        with as_weights_error(folder):
            stored = [(name, file) for file, tensors in self._files.items() for name in tensors.keys()]  # noqa: SIM118
            self._locations = {_current_name(name): (name, file) for name, file in stored}
            if len(self._locations) < len(stored):
                counts = Counter(_current_name(name) for name, _ in stored)
                raise WeightsError(f"{folder} has {counts.most_common(1)[0][0]!r} twice; keep one of them")
            if absent := sorted(_indexed(folder).keys() - {name for name, _ in stored}):
                raise WeightsError(f"{folder}: no shard has {absent[0]!r}, which {INDEX} names; download them again")
            slices = {name: self._slice(name) for name in self._locations}
            self.arrays = {
                name: ArrayInfo(tuple(part.get_shape()), DTYPES.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }

    def _slice(self, name: str) -> Any:
        stored_name, file = self._locations[name]
        return self._files[file].get_slice(stored_name)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part of the array `name`: one slice per axis, or the whole array if `index` is empty."""
        with as_weights_error(self.path):
            if index:
                return self._slice(name)[index]
            stored_name, file = self._locations[name]
            return self._files[file].get_tensor(stored_name)


def _current_name(name: str) -> str:
    """Convert a name of the first BERT checkpoints to the current name (see `LEGACY`); other names stay unchanged."""
    old = next((old for old in LEGACY if name.endswith(old)), "")
    return name.removesuffix(old) + LEGACY.get(old, "")


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "numpy")
    except FileNotFoundError:
        raise WeightsError(f"{file} is missing: the index lists it as a shard; download it again") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is damaged ({error}); download it again") from None


def _indexed(folder: Path) -> Mapping[str, str]:
    """Return the file name of each array's shard, by the array's name; the dict is empty if the folder has no index."""
    return read_json(folder / INDEX)["weight_map"] if (folder / INDEX).is_file() else {}


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(_indexed(folder).values()))]
        except (KeyError, AttributeError):
            raise WeightsError(f"{index} has no weight_map") from None
        except TypeError:
            raise WeightsError(f"{index} names a shard by something else than a text") from None
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise WeightsError(f"{folder} has {len(files)} safetensors files and no index; keep one, or add the index")
    pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]
    if pickles:
        cure = "if you trust it, convert it: model.save_pretrained(FOLDER, safe_serialization=True)"
        raise WeightsError(f"{folder} has only a pickle ({pickles[0]}), which is never opened; {cure}")
    raise WeightsError(f"{folder} has no safetensors file")
