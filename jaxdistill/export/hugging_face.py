"""Our networks as the world writes them: a folder that transformers loads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.core.types import Array, Variables
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.weights import dump

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt")


def write(
    folder: Path,
    family: str,
    arguments: Mapping[str, Any],
    variables: Variables,
    card: str,
    tokenizer: Path | None = None,
    images: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json`, `model.safetensors`, the files of tokenizer and image processor, and a model card.

    The folder appears whole or not at all; one that is there already is replaced.

    Args:
        folder: to be written.
        family: of the network.
        arguments: of the family's factory.
        variables: of the network, of any sharding.
        card: the model card, Markdown.
        tokenizer: folder whose tokenizer goes with the network.
        images: how an image becomes what the network sees, as transformers writes it.
    """
    from safetensors.numpy import save_file

    whole = jax.tree.map(_whole, variables)  # every process gathers what is spread over them: none may leave before
    if jax.process_index() != 0:
        return
    half = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    found = families[family]
    (half / "config.json").write_text(json.dumps(found.config(arguments), indent=2) + "\n")
    save_file(dump(found, arguments, whole), half / "model.safetensors", metadata={"format": "pt"})
    (half / "README.md").write_text(card)
    for file in (tokenizer / name for name in TOKENIZER_FILES) if tokenizer else ():
        if file.is_file():
            shutil.copyfile(file, half / file.name)
    if images:
        (half / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    half.rename(folder)


def _whole(x: Array) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
