"""Write a trained model as a folder that holds all it takes to use it, and read this folder.

FOLDER/jaxdistill.json      how the model is built, what it reads, and the names of its classes
FOLDER/model.safetensors    its weights; with the names of transformers, if transformers has the architecture
FOLDER/config.json ...      what transformers and sentence-transformers read, if they have the architecture
FOLDER/tokenizer.json ...   the tokenizer, if the model reads text
FOLDER/README.md            the model card
FOLDER/seal.json            checksums of all files
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.atomic import replaced_folder
from jaxdistill.core.errors import DamageError
from jaxdistill.core.types import Array, Variables
from jaxdistill.export import hugging_face

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "merges.txt")
ABOUT, WEIGHTS, CARD = "jaxdistill.json", "model.safetensors", "README.md"


class About(NamedTuple):
    """The description of a trained model, with all that its use needs beside the weights: content of `jaxdistill.json`.

    model: spec string of the model, such as "mlp(widths=(64,), classes=10)"
    options: arguments of the model that the files of the Hugging Face layout cannot express, such as {"pool": "cls"}
    dtype: dtype of its computation, "float32" or "bfloat16"
    inputs: shape and dtype of one example of each batch field that the model was trained with
    tokens: spec string of the tokenization, with `tokenizer='.'` for this folder; empty if the model reads no text
    texts: fields of a record that hold its texts
    transforms: spec strings of the transforms of its batches that are not random, such as "resize(size=224)"
    task: the task by its name on the Hugging Face hub, such as "text-classification"
    class_names: names of the classes, in order; empty if they have no names
    batch_size: rows of a batch of its evaluation
    columns: columns of the user's files that the model reads, by argument of the data set `table`, such as
        {"text": ["review"]}; empty for other data sets
    channels: channels of decoded images, 1 or 3
    embeds: whether the model has no classes, and gives the embedding of its input
    hub_layout: whether the folder has the layout of Hugging Face, which `pretrained(FOLDER)` reads
    in_transformers: whether transformers has the architecture too
    parts: components of the user (such as a model or a transform) that the spec strings name, each with its module
    stage: name of the model in the result table of its run, such as "student"; empty if not known
    run: random name of the run, as in its config.json; empty if not known
    quantized: spec string of the quantizer of a model from quantisation-aware training, which rounds the inputs of
        matrix products; empty for any other model
    ranges: least and greatest input of each quantised product, by name of its weight; empty if they are not fixed
    """

    model: str
    options: dict[str, Any]
    dtype: str
    inputs: dict[str, tuple[tuple[int, ...], str]]
    tokens: str
    texts: list[str]
    transforms: list[str]
    task: str
    class_names: list[str]
    batch_size: int
    columns: dict[str, list[str]]
    channels: int
    embeds: bool
    hub_layout: bool
    in_transformers: bool
    parts: dict[str, str]
    stage: str = ""
    run: str = ""
    quantized: str = ""
    ranges: Mapping[str, Any] = MappingProxyType({})


TYPES: seal.JsonTypes = {
    "model": str,
    "options": dict,
    "dtype": str,
    "inputs": dict,
    "tokens": str,
    "texts": list,
    "transforms": list,
    "task": str,
    "class_names": list,
    "batch_size": int,
    "columns": dict,
    "channels": int,
    "parts": dict,
    "stage": str,
    "run": str,
    "quantized": str,
    "ranges": dict,
}


class Extras(NamedTuple):
    """The contents of a model folder that only some models have: Hugging Face format, tokenizer and image processor.

    family: name of the model's family, which defines its Hugging Face format; empty if it has no such format
    arguments: arguments of the family's factory
    tokenizer: file of the tokenizer; None if the model reads no text
    length: largest number of tokens of a text; 0 if the model reads no text
    image_processor: content of `preprocessor_config.json`; None if no image processor of transformers does the same
    """

    family: str
    arguments: Mapping[str, Any]
    tokenizer: Path | None = None
    length: int = 0
    image_processor: Mapping[str, Any] | None = None


def write(folder: Path, about: About, extras: Extras, variables: Variables, card: str) -> None:
    """Write a trained model as a folder, and replace an existing one.

    The folder is written under another name and renamed when it is complete.

    Args:
        folder: the folder to write.
        about: how the model is built and what it reads.
        extras: the contents that only some models have, such as a tokenizer.
        variables: the model's parameters and state, with any sharding. Every process must call the function; one
            process writes.
        card: text of the model card, in Markdown.
    """
    from safetensors.numpy import save_file

    gathered = jax.tree.map(_gather, variables)  # collective: every process must take part before it returns
    if jax.process_index() != 0:
        return
    with replaced_folder(folder) as draft:
        if extras.family:
            arrays = hugging_face.weights(extras.family, extras.arguments, gathered)
            files = hugging_face.config_files(extras.family, extras.arguments, about.class_names, extras.length)
        else:
            arrays = {f"{part}/{name}": np.asarray(x, order="C") for part, name, x in _named(gathered)}
            files = {}
        if extras.image_processor:
            files["preprocessor_config.json"] = extras.image_processor
        for name, content in files.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(arrays, draft / WEIGHTS, metadata={"format": "pt"})
        for file in (extras.tokenizer.with_name(name) for name in TOKENIZER_FILES) if extras.tokenizer else ():
            if file.is_file():
                shutil.copyfile(file, draft / file.name)
        if extras.tokenizer:
            shutil.copyfile(extras.tokenizer, draft / "tokenizer.json")
        seal.write(draft / ABOUT, {**about._asdict(), "ranges": dict(about.ranges)})
        (draft / CARD).write_text(card, encoding="utf-8")
        shutil.copymode(draft / CARD, draft / WEIGHTS)  # safetensors lets only the owner read
        seal.seal_folder(draft)


def _named(variables: Variables) -> list[tuple[str, str, np.ndarray]]:
    return [(part, name, x) for part in ("params", "state") for name, x in getattr(variables, part).items()]


def _gather(x: Array) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def is_complete(folder: Path) -> bool:
    """Return True if a folder holds a model, and no file that is needed has changed since it was written."""
    try:
        read_about(folder)
        seal.check_folder(folder)
    except (DamageError, FileNotFoundError):
        return False
    return True


def write_card(folder: Path, card: str) -> None:
    """Replace the model card in a model folder, and its checksum, unless the card has this text already."""
    if (folder / CARD).read_text(encoding="utf-8") != card:
        seal.write_text(folder / CARD, card)
        seal.seal_again(folder / CARD)


def read_about(folder: Path) -> About:
    """Read the description of the model in a folder, `jaxdistill.json`: how it is built and what it reads.

    Raises:
        FileNotFoundError: the folder holds no model of jaxdistill.
        DamageError: a file is damaged.
    """
    seal.check_in_folder(folder / ABOUT)
    content = seal.read(folder / ABOUT, {}, required=True)
    required = [name for name in About._fields if name not in About._field_defaults]
    if missing := [name for name in required if name not in content]:
        cure = "repeat the command of the run, which writes it again"
        raise DamageError(f"{folder / ABOUT} is of another version ({missing[0]!r} is missing); {cure}")
    seal.read(folder / ABOUT, {name: kind for name, kind in TYPES.items() if name in content}, required=True)
    inputs = {name: (tuple(shape), str(dtype)) for name, (shape, dtype) in content["inputs"].items()}
    return About(**{name: content[name] for name in About._fields if name in content} | {"inputs": inputs})


def read_arrays(folder: Path, expected: Variables) -> Variables:
    """Read the weights of a model without a Hugging Face format from `model.safetensors` in its folder.

    Args:
        folder: folder of the model.
        expected: shapes and dtypes of the model's parameters and state.

    Raises:
        DamageError: the file is damaged, or its arrays are not those of the model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    seal.check_in_folder(folder / WEIGHTS)
    try:
        arrays = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise DamageError(f"{folder / WEIGHTS} is damaged ({error})") from None
    wanted = {f"{part}/{name}": x for part, of in expected._asdict().items() for name, x in of.items()}
    scalars = {name for name, x in wanted.items() if not x.shape and arrays.get(name, x).shape == (1,)}
    # an earlier version wrote scalars as vectors of length 1
    arrays |= {name: arrays[name].reshape(()) for name in scalars}
    is_sealed = WEIGHTS in (seal.read_digests(folder) or {})  # then the run has written what it meant
    for name in wanted if is_sealed else dict.fromkeys((*wanted, *arrays)):
        stored, needed = (_described(each.get(name)) for each in (arrays, wanted))
        if stored != needed:
            raise DamageError(f"{folder / WEIGHTS}: {name} is {stored}, and the model has {needed}; restore the folder")
        if not is_sealed and arrays[name].dtype.kind == "f" and np.isnan(arrays[name]).any():
            raise DamageError(f"{folder / WEIGHTS}: {name} has a value that is not a number; restore the folder")
    part = lambda name: {key.removeprefix(name): x for key, x in arrays.items() if key.startswith(name)}
    return Variables(part("params/"), part("state/"))


def _described(array: Any) -> str:
    return "missing" if array is None else f"{list(array.shape)} {array.dtype}"
