"""Find the parts (losses, models, data sets, ...) of a config that the user's own code has registered."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxdistill.core import registry
from jaxdistill.core.registry import Registry

REGISTRIES = {each.kind: each for each in vars(registry).values() if isinstance(each, Registry)}  # by kind: "loss", ...
OwnParts = dict[str, str]  # "loss l1" -> the module that registered it


def own_parts(config: Mapping[str, Any]) -> OwnParts:
    """Return the parts (losses, models, data sets, ...) of a config that the user's own code has registered.

    Every word of the config counts as a name, so that a part named like a word of the config is listed too.

    Args:
        config: a config as nested dicts.

    Returns:
        `{"loss l1": "config_mine"}`: kind and name of each part, and the name of its module. The module of the config
        file NAME.py is `config_NAME`.
    """
    words = {word for text in _texts(config) for word in re.findall(r"[^\W\d]\w*", text)}
    named = ((kind, name, each.factories[name]) for kind, each in REGISTRIES.items() for name in each if name in words)
    return {f"{kind} {name}": make.__module__ for kind, name, make in named if not _is_ours(make.__module__)}


def registered_by_others() -> list[str]:
    """List all registered parts (losses, models, ...) that do not come with jaxdistill, as "loss l1 (config_mine)"."""
    every = ((kind, name, each[name].__module__) for kind, each in REGISTRIES.items() for name in each)
    return [f"{kind} {name} ({module})" for kind, name, module in every if not _is_ours(module)]


def _is_ours(module: str | None) -> bool:  # None: the code that registered the part was given to `exec`
    return str(module).partition(".")[0] == "jaxdistill"


def _texts(tree: Any) -> Iterator[str]:
    """Yield all strings of a config: its values, and its keys, because a loss term may be named like its loss."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def unregistered(parts: Mapping[str, Any]) -> list[str]:
    """List those of the given parts that no code has registered in this process.

    Args:
        parts: a mapping whose keys are kind and name of a part each, such as "loss l1".
    """
    split = ((part, *part.rpartition(" ")[::2]) for part in parts)
    return [part for part, kind, name in split if name not in getattr(REGISTRIES.get(kind), "factories", {})]
