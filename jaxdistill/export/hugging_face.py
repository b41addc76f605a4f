"""Export a model as a Hugging Face folder that transformers loads."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.types import Array, Variables
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.weights import export_arrays

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt")


def write(
    folder: Path,
    family: str,
    arguments: Mapping[str, Any],
    variables: Variables,
    card: str,
    tokenizer: Path | None = None,
    image_processor: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as a folder that Hugging Face transformers loads, with config, weights and model card.

    A tokenizer and the settings of an image processor are added if they are given. The folder is written under a
    temporary name and renamed when complete. An existing folder is replaced.

    Args:
        folder: the folder to write to.
        family: name of the model family, such as "bert", which defines the Hugging Face config and weight names.
        arguments: arguments with which the family's factory built the model.
        variables: the model's parameters and state, with any sharding. Every process must call the function; one
            process writes.
        card: text of the model card, in Markdown.
        tokenizer: folder from which the tokenizer's files are copied; None: the model reads no text.
        image_processor: content of `preprocessor_config.json`; None: the model reads no images.
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
    save_file(
        export_arrays(model_family, arguments, gathered), temporary / "model.safetensors", metadata={"format": "pt"}
    )
    (temporary / "README.md").write_text(card)
    for file in (tokenizer / name for name in TOKENIZER_FILES) if tokenizer else ():
        if file.is_file():
            shutil.copyfile(file, temporary / file.name)
    if image_processor:
        (temporary / "preprocessor_config.json").write_text(json.dumps(image_processor, indent=2) + "\n")
    seal.seal_folder(temporary)
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
