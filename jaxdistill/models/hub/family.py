"""Describe the Hugging Face format of a model family: configs, weight names and layouts.

Each model file registers a `Family`. One loader and one exporter (`weights.py`) then serve all families.
"""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.interfaces import Model

Layout = Literal["same", "linear", "conv"]


class Rule(NamedTuple):
    r"""The mapping from the arrays of a model to those of a checkpoint. A family's rules are tried in order.

    name: regex that matches the whole name of an array of the model, `r"blocks/(\d+)/up/kernel"`
    stored_name: name in the checkpoint, with the groups of the match, `"encoder.layer.{0}.intermediate.dense.weight"`.
        With `{layer}` the model's array stacks all layers along a leading axis, which `layout` and `axes` leave out
    layout: "same"; "linear": [out, in] in the checkpoint and [in, out] in the model; "conv": [out, in, h, w] in the
        checkpoint and [h, w, in, out] in the model
    axes: the axis that each dimension of the MODEL's array belongs to, `("width", "ffn")`. A student can be cut along
        these axes; "" is an axis that cannot be cut
    """

    name: str
    stored_name: str
    layout: Layout = "same"
    axes: tuple[str, ...] = ()


class Family(NamedTuple):
    r"""A model family and its Hugging Face format.

    factory: `(**arguments) -> Model`, registered in `registry.models` too
    model_types: values of `model_type` in the configs of this family
    arguments: `(config) -> arguments` of the factory; raises ValueError for a setting that the model does not support
    config: `(arguments) -> config` for transformers, with `model_type` and `architectures`
    rules: `(arguments) -> rules`
    prefix: regex of the prefix of the base model's weight names, `r"bert\."`; a checkpoint of the base model alone has
        names without this prefix
    fresh: regex of arrays of the model that a checkpoint may lack, because they belong to a task. They keep their
        initial values
    ignored: regex of weight names that are ignored: buffers, heads of other tasks
    """

    factory: Callable[..., Model]
    model_types: tuple[str, ...]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    rules: Callable[[Mapping[str, Any]], tuple[Rule, ...]]
    prefix: str = ""
    fresh: str = r"(?!)"  # matches nothing
    ignored: str = r"(?!)"


PERMUTATIONS: dict[Layout, tuple[int, ...]] = {"linear": (1, 0), "conv": (2, 3, 1, 0)}


def find_rule(rules: tuple[Rule, ...], name: str) -> tuple[Rule, tuple[str, ...]] | None:
    """Return the first rule that matches the name of an array of the model, and the groups of the match."""
    for rule in rules:
        if match := re.fullmatch(rule.name, name):
            return rule, match.groups()
    return None


def batch_norm(name: str, stored_name: str, axis: str = "") -> tuple[Rule, ...]:
    """Return the rules of a batch normalisation with PyTorch's names; its `num_batches_tracked` is not used."""
    parts = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return tuple(Rule(f"{name}/{part}", f"{stored_name}.{stored}", axes=(axis,)) for part, stored in parts.items())


def num_classes(config: Mapping[str, Any], default: int = 2) -> int:
    """Return the number of classes of a config.

    transformers writes the names of the labels (`id2label`) instead of their number; it uses 2 if both are missing.
    """
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", default)


def label_names(count: int) -> dict[str, Any]:
    """Return the config entries with the default label names of transformers."""
    names = [f"LABEL_{number}" for number in range(count)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def require_settings(config: Mapping[str, Any], supported: Mapping[str, Collection[Any]]) -> None:
    """Check that a config has only supported settings.

    Args:
        config: the config; it may lack keys.
        supported: the supported values of each key.

    Raises:
        ValueError: a setting is not supported; the message has key, value and supported values.
    """
    for key, choices in supported.items():
        if key in config and config[key] not in choices:
            cure = f"this model supports {', '.join(map(repr, choices))}; use another checkpoint"
            raise ValueError(f"{key}={config[key]!r}: {cure}")


def with_defaults(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a factory with its defaults filled in."""
    bound = inspect.signature(factory).bind(**arguments)
    bound.apply_defaults()
    return dict(bound.arguments)


families: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Register a family under its factory's name."""
    families[family.factory.__name__] = family
    return family


def family_name(config: Mapping[str, Any]) -> str:
    """Return the name of the family of a config.

    Raises:
        WeightsError: no family has its `model_type`; the message lists the known ones.
    """
    model_type = config.get("model_type")
    for name, family in families.items():
        if model_type in family.model_types:
            return name
    known = sorted(name for family in families.values() for name in family.model_types)
    raise WeightsError(f"the model_type {model_type!r} is not supported. Known: {', '.join(known)}")
