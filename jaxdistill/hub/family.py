"""What a model file says about the checkpoints of its family, so that one loader and one writer serve all of them."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from jaxdistill.hub.source import WeightsError
from jaxdistill.types import Model

Layout = Literal["same", "linear", "conv"]


class Rule(NamedTuple):
    r"""Where one kind of our arrays is found in a checkpoint. A family's rules are tried in order.

    ours: regex that matches our whole name, `r"blocks/(\d+)/up/kernel"`
    theirs: their name, made from the groups of ours, `"encoder.layer.{0}.intermediate.dense.weight"`. With `{layer}`
        our array is a stack over all layers along a first axis, which `layout` and `axes` leave out
    layout: "same"; "linear" is their [out, in] and our [in, out]; "conv" their [out, in, h, w], our [h, w, in, out]
    axes: what each of OUR dimensions counts, `("width", "ffn")`; a student is cut along these. An axis that no
        student can be cut along is ""
    """

    ours: str
    theirs: str
    layout: Layout = "same"
    axes: tuple[str, ...] = ()


class Family(NamedTuple):
    r"""One architecture as the world writes it: a factory of ours, and the way to and from its configs and names.

    factory: `(**arguments) -> Model`, registered in `registry.models` too
    model_types: `model_type` of the configs that it reads
    arguments: `(config) -> arguments` of the factory; raises ValueError for a setting that the network does not have
    config: `(arguments) -> config` that transformers reads, with `model_type` and `architectures`
    rules: `(arguments) -> rules`
    prefix: regex of what names of the base model begin with, `r"bert\."`; a checkpoint of the bare base model lacks it
        in all names
    fresh: regex of our names that a checkpoint may lack, because they belong to a task: they keep their first values
    ignored: regex of their names that have no meaning here: buffers, heads of other tasks
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


def find(rules: tuple[Rule, ...], name: str) -> tuple[Rule, tuple[str, ...]] | None:
    """The first rule that matches one of our names, and the groups of the match."""
    for rule in rules:
        if found := re.fullmatch(rule.ours, name):
            return rule, found.groups()
    return None


families: dict[str, Family] = {}


def add(family: Family) -> Family:
    """Registers a family under its factory's name."""
    families[family.factory.__name__] = family
    return family


def of_config(config: Mapping[str, Any]) -> str:
    """The name of the family that reads a config.

    Raises:
        WeightsError: no family does; the known ones are listed.
    """
    kind = config.get("model_type")
    for name, family in families.items():
        if kind in family.model_types:
            return name
    known = sorted(kind for family in families.values() for kind in family.model_types)
    raise WeightsError(f"its architecture is {kind!r}, and none of ours. Known: {', '.join(known)}")
