"""Configs: the schema's defaults and what differs from them, checked key by key.

Imports no JAX, so that a mistake shows at once. A config file holds differences only:

    from jaxdistill import make

    def get_config():
        return make(steps=1000, student=dict(model="mlp(widths=(64,), classes=10)"), ...)
"""

import functools
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.run.schema import FREE, RENAMED, SCHEDULE, SCHEMA, Key, Open

Config = ConfigDict  # the type of a whole config, under the name that this package uses


def make(**differences: Any) -> ConfigDict:
    """Makes a whole config: the schema's defaults, and what differs from them.

    Raises:
        ConfigError: for an unknown key, or a value of the wrong kind.
    """
    return _ordered(_merge(SCHEMA, differences, "", "")).lock()


def _ordered(tree: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict in the order in which it was written: teachers are numbered in the order of their names."""
    found = ConfigDict(type_safe=False, sort_keys=False)
    for key, value in tree.items():
        found[key] = _ordered(value) if isinstance(value, Mapping) else value
    return found


def differ(config: ConfigDict, **differences: Any) -> ConfigDict:
    """Makes a copy of a config with other values for some of its keys.

    A section with keys of its own, such as `data`, keeps those that are not given; one whose entries the user names,
    such as `teachers` or `objective`, is replaced.
    """
    old = config.to_dict()

    def other(key: str, value: Any) -> Any:
        whole = isinstance(SCHEMA.get(key), Mapping) and isinstance(value, Mapping)
        return {**old[key], **value} if whole else value

    return make(**{**old, **{key: other(key, value) for key, value in differences.items()}})


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _renamed(place: str, key: str, path: str) -> str:
    """The key's name of today, with a note where it had another one.

    Args:
        place: of the section in the schema, such as "teachers.NAME".
        key: as it is written.
        path: of the section in the config.
    """
    new = RENAMED.get((place, key))
    if new is None:
        return key
    _note(f"{_join(path, key)} is called {_join(path, new)} now")
    return new


@functools.cache  # once for each message
def _note(text: str) -> None:
    sys.stderr.write(f"note: {text}\n")


def _merge(schema: Mapping[str, Any], given: Any, path: str, place: str) -> dict[str, Any]:
    """The schema's defaults, overridden by what is given, checked."""
    if not isinstance(given, Mapping):
        raise ConfigError(path, f"{given!r} is not a section; it holds the keys {', '.join(schema)}.")
    given = {_renamed(place, str(key), path): value for key, value in given.items()}
    for key in given:
        if key not in schema:
            raise ConfigError(_join(path, key), f"unknown key {key!r}. {suggest(key, schema)}")
    return {key: _value(part, given.get(key), _join(path, key), _join(place, key)) for key, part in schema.items()}


def _value(part: Any, given: Any, path: str, place: str) -> Any:
    if isinstance(part, Key):
        return part.default if given is None else _checked(part, given, path)
    if isinstance(part, Open):
        entries = part.default if given is None else given
        if not isinstance(entries, Mapping):
            raise ConfigError(path, f"{entries!r} is not a section of named entries.")
        for name in entries:
            if not re.fullmatch(r"[A-Za-z_][\w-]*", str(name)):
                raise ConfigError(path, f"{name!r} names an entry; a name is letters, digits, _ and -, a letter first.")
        inside = _join(place, "NAME")
        return {name: _merge(part.entry, entry, _join(path, name), inside) for name, entry in entries.items()}
    return _merge(part, {} if given is None else given, path, place)


def _frozen(value: Any) -> Any:
    """Lists (of JSON) as tuples, all the way down."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _checked(key: Key, value: Any, path: str) -> Any:
    value = _frozen(value)
    if key.kind is SCHEDULE and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # one type, so that the command line may replace a number by a schedule
    if not key.kind.accepts(value):
        raise ConfigError(path, f"{value!r} is not {key.kind.wanted}. It is: {key.doc}.")
    return value


def override(config: ConfigDict, changes: Iterable[tuple[str, str]]) -> ConfigDict:
    """Applies `--config.a.b=value` changes, read by the kind of their key.

    Args:
        config: a whole config.
        changes: `("a.b", "value")` pairs. `objective`, `teachers`, `task`, `roles` and `streams`
            accept new names.

    Raises:
        ConfigError: for an unknown key, or a value of the wrong kind.
    """
    tree = config.to_dict()
    for path, text in changes:
        *parents, last = path.split(".")
        schema: Any = SCHEMA
        node, place = tree, ""
        for number, name in enumerate(parents):
            here = ".".join(parents[: number + 1])
            if isinstance(schema, Open):
                schema, node, place = schema.entry, node.setdefault(name, {}), _join(place, "NAME")
            elif isinstance(schema.get(name), Key):
                raise ConfigError(here, f"{name!r} is a key, not a section; set it as --config.{here}=VALUE.")
            elif name in schema:
                schema, node, place = schema[name], node[name], _join(place, name)
            else:
                raise ConfigError(here, f"unknown section {name!r}. {suggest(name, schema)}")
        inner = schema if isinstance(schema, Mapping) else schema.entry
        if isinstance(schema, Open) or isinstance(inner.get(last), Mapping | Open):
            raise ConfigError(path, f"{last!r} is a section; set one of its keys, as in --config.{path}.KEY=VALUE.")
        last = _renamed(place, last, ".".join(parents))
        if last not in inner:
            raise ConfigError(path, f"unknown key {last!r}. {suggest(last, inner)}")
        node[last] = _read(schema[last], text, path)
    return make(**tree)


def changes(words: Iterable[str]) -> list[tuple[str, str]]:
    """`--config.a.b=value` words as ("a.b", "value") pairs."""
    found = []
    for word in words:
        path, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not equals:
            raise ConfigError(
                word, "unknown word on the command line. Changes are written --config.a.b=value; see --help."
            )
        found.append((path, value))
    return found


def _read(key: Key, text: str, path: str) -> Any:
    try:
        return key.kind.read(text)
    except ValueError:
        raise ConfigError(path, f"{text!r} is not {key.kind.wanted}. It is: {key.doc}.") from None


def conflicts(saved: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """Where a config differs from the one that a workdir was made with, `FREE` keys aside: "path: saved -> new"."""
    old, new = (dict(_flat(_frozen_tree(tree))) for tree in (saved, config.to_dict()))
    paths = sorted(set(old) | set(new))
    changed = [path for path in paths if old.get(path) != new.get(path) and path.split(".")[0] not in FREE]
    return [f"{path}: {old.get(path)!r} -> {new.get(path)!r}" for path in changed]


def _frozen_tree(tree: Any) -> Any:
    return {key: _frozen_tree(value) for key, value in tree.items()} if isinstance(tree, Mapping) else _frozen(tree)


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, _join(path, key))
        else:
            yield _join(path, key), value


def describe(schema: Mapping[str, Any] = SCHEMA, path: str = "") -> Iterable[tuple[str, str, str]]:
    """Every key as (path, default, meaning), for `--help`."""
    for key, part in schema.items():
        here = _join(path, key)
        if isinstance(part, Key):
            yield here, repr(part.default), part.doc
        elif isinstance(part, Open):
            yield f"{here}.NAME", "", part.doc
            yield from describe(part.entry, f"{here}.NAME")
        else:
            yield from describe(part, here)
