"""Fill in what only the data tell: `{classes}` and `{vocabulary}` in the spec strings of a config.

So a preset such as `mlp(widths=(64,), classes={classes})` fits any data set.
"""

import re
from collections.abc import Callable
from typing import Any

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.describe import Description, describe
from jaxdistill.run.config import Config, make
from jaxdistill.run.pipelines import data_folder

PLACEHOLDER = re.compile(r"\{(classes|vocabulary)\}")


def with_stand_ins(config: Config) -> Config:
    """Return a config whose placeholders are 2, so that its other mistakes are found before any data are read."""
    return make(**_replaced(config.to_dict(), "", lambda *_: "2"))


def fill_placeholders(config: Config) -> Config:
    """Return a config whose placeholders are replaced by the number of classes and the size of the vocabulary.

    A config without placeholders is returned as it is, and its data are not looked at.

    Args:
        config: a complete config.

    Raises:
        ConfigError: the data cannot be described, or do not define what a placeholder asks for.
    """
    known: list[Description] = []

    def value(path: str, text: str, name: str) -> str:
        if not known:
            data = config.data
            known.append(describe(data.name, data.train, data_folder(config), "data", "train", data.tokens))
        number = getattr(known[0], name)
        if number is None:
            lack = "labels with a known number of classes" if name == "classes" else "a tokenizer"
            raise ConfigError(path, f"{text!r} asks for {{{name}}}, and the data have not {lack}. Write a number.")
        return str(number)

    tree = config.to_dict()
    found = _replaced(tree, "", value)
    return make(**found) if found != tree else config


def _replaced(tree: Any, path: str, value: Callable[[str, str, str], str]) -> Any:
    """Return a tree of sections whose texts have no placeholders; `value(path, text, name)` replaces one."""
    if isinstance(tree, dict):
        return {key: _replaced(each, f"{path}.{key}" if path else key, value) for key, each in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_replaced(each, path, value) for each in tree)
    if isinstance(tree, str):
        return PLACEHOLDER.sub(lambda match: value(path, tree, match[1]), tree)
    return tree
