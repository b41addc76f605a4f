"""Export a model as a Hugging Face folder that transformers loads."""

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
    """Write `config.json`, `model.safetensors`, the files of tokenizer and image processor, and a model card.

    The folder is complete or does not exist. A folder that exists already is replaced.

    Args:
        folder: the folder to write to.
        family: model family.
        arguments: of the family's factory.
        variables: of the model, with any sharding.
        card: the model card, Markdown.
        tokenizer: folder of the tokenizer's files.
        images: the content of `preprocessor_config.json`.
    """
    from safetensors.numpy import save_file

    gathered = jax.tree.map(_gather, variables)  # collective: every process must take part before it returns
    if jax.process_index() != 0:
        return
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model_family = families[family]
    (temporary / "config.json").write_text(json.dumps(model_family.config(arguments), indent=2) + "\n")
    save_file(dump(model_family, arguments, gathered), temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "README.md").write_text(card)
    for file in (tokenizer / name for name in TOKENIZER_FILES) if tokenizer else ():
        if file.is_file():
            shutil.copyfile(file, temporary / file.name)
    if images:
        (temporary / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")
    previous = folder.with_name(f"{folder.name}.old")  # kept until the new one is in place: a kill loses neither
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    temporary.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _gather(x: Array) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
