"""What a model file says about the checkpoints of its family, so that one loader and one writer serve all of them."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

from jaxdistill.core.errors import WeightsError
from jaxdistill.core.types import Model

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


def batch_norm(ours: str, theirs: str, axis: str = "") -> tuple[Rule, ...]:
    """Rules of a batch normalisation as PyTorch names it; its `num_batches_tracked` has no meaning here."""
    pairs = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return tuple(Rule(f"{ours}/{mine}", f"{theirs}.{yours}", axes=(axis,)) for mine, yours in pairs.items())


def classes(config: Mapping[str, Any], default: int = 2) -> int:
    """How many labels: transformers writes their names instead of a number, and means 2 where it writes neither."""
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", default)


def labels(classes: int) -> dict[str, Any]:
    """Names of labels, as transformers writes them."""
    names = [f"LABEL_{number}" for number in range(classes)]
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def require(config: Mapping[str, Any], known: Mapping[str, Collection[Any]]) -> None:
    """Refuses a config with a setting that a network does not have.

    Raises:
        ValueError: with key, value and what is known.
    """
    for key, choices in known.items():
        if key in config and config[key] not in choices:
            cure = f"this network knows {', '.join(map(repr, choices))}; take another checkpoint"
            raise ValueError(f"{key}={config[key]!r}: {cure}")


def complete(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a factory with its defaults filled in."""
    bound = inspect.signature(factory).bind(**arguments)
    bound.apply_defaults()
    return dict(bound.arguments)


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
