"""Convert a model to the Hugging Face format: the files that transformers and sentence-transformers load."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdistill.core.types import Variables
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.weights import export_arrays


def config_files(
    family: str, arguments: Mapping[str, Any], class_names: Sequence[str] = (), length: int = 0
) -> dict[str, Any]:
    """Return the JSON files from which transformers, or sentence-transformers, builds a model: a dict by file name.

    The files of sentence-transformers are included for a text encoder without a classification head.

    Args:
        family: name of the model family, such as "bert", which defines the Hugging Face config and weight names.
        arguments: arguments with which the family's factory built the model.
        class_names: names of the classes, in order; if empty, transformers calls them LABEL_0, LABEL_1, ...
        length: largest number of tokens of a text; 0 if the model reads no text.
    """
    config = families[family].config(arguments)
    if class_names and len(config.get("id2label", ())) == len(class_names):
        config["id2label"] = dict(enumerate(class_names))
        config["label2id"] = {name: number for number, name in enumerate(class_names)}
    embeds = arguments.get("classes") == 0  # a text encoder without a head
    return {"config.json": config, **(_embedder_files(arguments, length) if embeds else {})}


def in_transformers(family: str, arguments: Mapping[str, Any]) -> bool:
    """Return True if transformers has the architecture of a model.

    The config of any other architecture has a `model_type` that begins with "jaxdistill".

    Args:
        family: name of the model family.
        arguments: arguments with which the family's factory built the model.
    """
    return not str(families[family].config(arguments)["model_type"]).startswith("jaxdistill")


def _embedder_files(arguments: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the JSON files of a sentence-transformers model by name, for its network, pooling and normalisation."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    by_cls = arguments["pool"] == "cls"
    pooling = {
        "word_embedding_dimension": arguments["width"],
        "pooling_mode_cls_token": by_cls,
        "pooling_mode_mean_tokens": not by_cls,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    limit = {"max_seq_length": length or None, "do_lower_case": False}
    return {"modules.json": modules, "1_Pooling/config.json": pooling, "sentence_bert_config.json": limit}


def weights(family: str, arguments: Mapping[str, Any], variables: Variables) -> dict[str, np.ndarray]:
    """Return the weights of a model as a dict of arrays, with the names and layouts of transformers.

    Args:
        family: name of the model family.
        arguments: arguments with which the family's factory built the model.
        variables: the model's parameters and state, as arrays of the host.
    """
    return export_arrays(families[family], arguments, variables)
