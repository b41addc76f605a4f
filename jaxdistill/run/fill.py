"""Replace the placeholders `{classes}`, `{vocabulary}` and `{texts}` in the spec strings of a config by their values.

The values come from the data set and its tokenizer: number of classes, vocabulary size, names of the text fields.
So a preset with the model `mlp(widths=(64,), classes={classes})` fits any data set.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

from jaxdistill.core.errors import ConfigError
from jaxdistill.data.describe import describe_split
from jaxdistill.run.config import Config, make
from jaxdistill.run.pipelines import data_folder

PLACEHOLDER = re.compile(r"\{(classes|vocabulary|texts)\}")
# A vocabulary that is large enough for every cut of it.
STAND_INS = {"classes": "2", "vocabulary": str(2**20), "texts": "('text',)"}


def with_stand_ins(config: Config) -> Config:
    """Return a config with provisional values for its placeholders, such as 2 for `{classes}`.

    So other mistakes in the config are found before any data are read.
    """
    return make(**_replaced(config.to_dict(), "", lambda path, text, name: STAND_INS[name]))


def fill_placeholders(config: Config) -> Config:
    """Return a config whose placeholders, such as `{classes}`, are replaced by values of its data set.

    These are the number of classes, the size of the vocabulary and the names of the text fields. A config without
    placeholders is returned as it is, and its data are not read.

    Args:
        config: a complete config.

    Raises:
        ConfigError: the data cannot be described, or do not define what a placeholder asks for.
    """
    data = config.data
    described = functools.cache(
        lambda tokens: describe_split(data.name, data.train, data_folder(config), "data", "train", tokens)
    )

    def texts(path: str, text: str, name: str) -> str:
        if name != "texts":
            return f"{{{name}}}"
        if not (texts_of_data := described("").texts):
            raise ConfigError(path, f"{text!r} asks for {{texts}}, and the records of {data.name!r} have no texts.")
        return repr(texts_of_data)

    def number(path: str, text: str, name: str) -> str:
        value = getattr(described(tokens), name)
        if value is None and name == "classes":
            cure = (
                "Name the column of the labels, label=; use the preset 'embedding' for data without; or write a number"
            )
            raise ConfigError(path, f"{text!r} asks for {{classes}}, and the data have no known classes. {cure}.")
        if value is None:
            raise ConfigError(
                path, f"{text!r} asks for {{vocabulary}}, and data.tokens is empty. Set it to a tokenizer."
            )
        return str(value)

    tree = config.to_dict()
    with_texts = _replaced(tree, "", texts)
    tokens = with_texts["data"]["tokens"]
    filled = _replaced(with_texts, "", number)
    return make(**filled) if filled != tree else config


def _replaced(tree: Any, path: str, value: Callable[[str, str, str], str]) -> Any:
    """Replace all placeholders in a tree of config sections; `value(path, text, name)` returns the value of one."""
    if isinstance(tree, dict):
        return {key: _replaced(each, f"{path}.{key}" if path else key, value) for key, each in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_replaced(each, path, value) for each in tree)
    if isinstance(tree, str):
        return PLACEHOLDER.sub(lambda match: value(path, tree, match[1]), tree)
    return tree
