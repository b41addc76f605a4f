"""Describe the Hugging Face format of a model family (BERT, CLIP, ...): configs, weight names and layouts.

The file of each model family registers a `Family`. One loader and one exporter (`weights.py`) then serve all families.
"""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.interfaces import Model

Layout = Literal["same", "linear", "conv"]


class Rule(NamedTuple):
    r"""A rule that maps arrays of a model to arrays of a Hugging Face checkpoint; the first matching rule applies.

    name: regex that matches the whole name of an array of the model, such as `r"blocks/(\d+)/up/kernel"`
    stored_name: name of the array in the checkpoint, such as `"encoder.layer.{0}.intermediate.dense.weight"`. The
        groups of the regex replace `{0}`, `{1}`, ... If the name contains `{layer}`, the model's array stacks the
        arrays of all layers along a leading axis; `layout` and `axes` then describe the array of one layer
    layout: order of the dimensions. "same": as in the model; "linear": [out, in] in the checkpoint, [in, out] in the
        model; "conv": [out, in, h, w] in the checkpoint, [h, w, in, out] in the model
    axes: name for each dimension of the MODEL's array, such as `("width", "ffn")`. A smaller student is made by
        removing or averaging the same units in all dimensions of one name. A dimension named "" keeps its size
    """

    name: str
    stored_name: str
    layout: Layout = "same"
    axes: tuple[str, ...] = ()


class Family(NamedTuple):
    r"""A model family and the format of its Hugging Face checkpoints.

    factory: the registered function that builds a model, `(**arguments) -> Model`
    model_types: values of `model_type` in the Hugging Face configs of this family
    arguments: `(config) -> arguments`, converts a Hugging Face config to arguments of the factory; raises ValueError
        for a setting that the model does not support
    config: `(arguments) -> config`, the inverse of `arguments`: a config with `model_type` and `architectures`
    rules: `(arguments) -> rules`, the rules that map the arrays of the model to arrays of a checkpoint
    prefix: regex of the prefix, such as `r"bert\."`, that weight names have in a checkpoint of a model with a head; in
        a checkpoint of the base model, without a head, the names have no prefix
    fresh: regex of the names of model arrays that a checkpoint may lack, such as the head of a new task; these arrays
        keep their random initial values
    ignored: regex of the checkpoint's names (with or without the prefix) that are not loaded, such as buffers
    heads: heads that checkpoints of this family may have: the end of the architecture's name in the Hugging Face config
        ("ForMaskedLM") -> regex of the names of the head's arrays. Arrays of a head are accepted as surplus only if
        the config names its architecture
    own_heads: those keys of `heads` that the model has itself
    """

    factory: Callable[..., Model]
    model_types: tuple[str, ...]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    rules: Callable[[Mapping[str, Any]], tuple[Rule, ...]]
    prefix: str = ""
    fresh: str = r"(?!)"  # matches nothing
    ignored: str = r"(?!)"
    heads: Mapping[str, str] = MappingProxyType({})
    own_heads: tuple[str, ...] = ()

    def heads_of(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keys of `heads` with which the names of the architectures in a Hugging Face config end.

        A config without architectures counts as one with the architecture "Model".
        """
        names = config.get("architectures") or ["Model"]
        return tuple(head for head in self.heads if any(str(name).endswith(head) for name in names))


POOLING = "sentence_pooling"  # key that a folder of sentence-transformers adds to a config: "mean" or "cls"
OWN_PREFIX = "jaxdistill_"  # of our own model types, whose models transformers does not have
PERMUTATIONS: dict[Layout, tuple[int, ...]] = {"linear": (1, 0), "conv": (2, 3, 1, 0)}


def find_rule(rules: tuple[Rule, ...], name: str) -> tuple[Rule, tuple[str, ...]] | None:
    """Return the first rule whose regex matches the name of a model's array, with the groups of the match, or None."""
    for rule in rules:
        if match := re.fullmatch(rule.name, name):
            return rule, match.groups()
    return None


def batch_norm_rules(name: str, stored_name: str, axis: str = "") -> tuple[Rule, ...]:
    """Return the rules that map scale, bias, mean and variance of a batch normalisation to PyTorch's names.

    Args:
        name: regex of the layer's name in the model.
        stored_name: name of the layer in the checkpoint. PyTorch's array `num_batches_tracked` has no rule.
        axis: name of the channel axis, see `Rule.axes`; "" means that a smaller student has the same number of
            channels.
    """
    parts = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return tuple(Rule(f"{name}/{part}", f"{stored_name}.{stored}", axes=(axis,)) for part, stored in parts.items())


def num_classes(config: Mapping[str, Any], default: int = 2) -> int:
    """Return the number of classes in a Hugging Face config; `default` if the config does not contain it.

    transformers writes the names of the labels (`id2label`) instead of the number, and assumes 2 if both are missing.
    """
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", default)


def label_names(count: int) -> dict[str, Any]:
    """Return the config settings `id2label` and `label2id` for `count` classes, named LABEL_0, LABEL_1, ..."""
    names = [f"LABEL_{number}" for number in range(count)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def require_supported(config: Mapping[str, Any], supported: Mapping[str, Collection[Any]]) -> None:
    """Require that the settings of a Hugging Face config have values that the model supports.

    Args:
        config: the config. A missing key is accepted.
        supported: the supported values of each key that is checked.

    Raises:
        ValueError: a value is not supported; the message contains key, value and supported values.
    """
    for key, choices in supported.items():
        if key in config and config[key] not in choices:
            cure = f"this model supports {', '.join(map(repr, choices))}; use another checkpoint"
            raise ValueError(f"{key}={config[key]!r}: {cure}")


def with_defaults(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict with `arguments`, and the default values of all other arguments of the function `factory`."""
    bound = inspect.signature(factory).bind(**arguments)
    bound.apply_defaults()
    return dict(bound.arguments)


families: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Add a model family to `families` under the name of its factory, such as "bert"; return the family."""
    families[family.factory.__name__] = family
    return family


def family_name(config: Mapping[str, Any]) -> str:
    """Return the name of the family, such as "bert", that a Hugging Face config belongs to.

    Raises:
        WeightsError: no family has the config's `model_type`; the message lists the known model types.
    """
    model_type = config.get("model_type")
    for name, family in families.items():
        if model_type in family.model_types:
            return name
    known = sorted(name for family in families.values() for name in family.model_types)
    raise WeightsError(f"the model_type {model_type!r} is not supported. Known: {', '.join(known)}")
