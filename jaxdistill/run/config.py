"""Make complete configs: the defaults of the schema, overridden by the user's values. Every key and value is checked.

This module does not import JAX, which takes seconds, so that errors appear at once. A config file holds only values
that differ from the defaults:

    from jaxdistill import make

    def get_config():
        return make(steps=1000, student=dict(model="mlp(widths=(64,), classes=10)"), ...)
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.core.notes import note
from jaxdistill.run.schema import CHANGEABLE, RENAMED, SCHEDULE, SCHEMA, Key, OpenSection

Config = ConfigDict  # the type of a complete config


def make(**differences: Any) -> ConfigDict:
    """Make a complete config: the given values, and the defaults of the schema for all other keys.

    The config is locked: no key can be added to it.

    Args:
        differences: values of config keys; the value of a section is a mapping, such as `data={"name": "mnist5k"}`.

    Raises:
        ConfigError: a key is unknown, or a value is of the wrong kind.
    """
    return _ordered(_merge(SCHEMA, differences, "", "")).lock()


def _ordered(tree: Mapping[str, Any]) -> ConfigDict:
    """Convert a mapping to a ConfigDict that keeps the order of keys: teachers are numbered in this order."""
    config = ConfigDict(type_safe=False, sort_keys=False)
    for key, value in tree.items():
        config[key] = _ordered(value) if isinstance(value, Mapping) else value
    return config


def differ(config: ConfigDict, **differences: Any) -> ConfigDict:
    """Copy a config, with other values for some of its keys.

    Args:
        config: a complete config.
        differences: new values of config keys; the value of a section is a mapping. In a section with fixed keys, such
            as `data`, keys that are not in the mapping keep their values. A section whose entries the user names, such
            as `teachers` or `objective`, is replaced as a whole.
    """
    old = config.to_dict()

    def merged(key: str, value: Any) -> Any:
        fixed_keys = isinstance(SCHEMA.get(key), Mapping) and isinstance(value, Mapping)
        return {**old[key], **value} if fixed_keys else value

    return make(**{**old, **{key: merged(key, value) for key, value in differences.items()}})


MISSING = object()  # stands for a key that a config does not set


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _renamed(place: str, key: str, path: str) -> str:
    """Return the current name of a key, and print a note if the config uses its old name.

    Args:
        place: path of the section in the schema, such as "teachers.NAME".
        key: the key as the user wrote it.
        path: path of the section in the config.
    """
    new = RENAMED.get((place, key))
    if new is None:
        return key
    note(f"{_join(path, key)} was renamed to {_join(path, new)}")
    return new


def _merge(schema: Mapping[str, Any], values: Any, path: str, place: str) -> dict[str, Any]:
    """Check the values of a config section, and return them as a dict, with the schema's defaults for missing keys.

    Args:
        schema: the schema of the section.
        values: the user's values for the section.
        path: path of the section in the config, such as "teachers.large"; empty for the whole config.
        place: path of the section in the schema, such as "teachers.NAME", under which `RENAMED` lists old key names.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(path, f"{values!r} is not a section; set its keys: {', '.join(schema)}.")
    values = {_renamed(place, str(key), path): value for key, value in values.items()}
    for key in values:
        if key not in schema:
            raise ConfigError(_join(path, key), f"unknown key {key!r}. {suggest(key, schema)}{_hint(place, path, key)}")
    return {
        key: _value(part, values.get(key, MISSING), _join(path, key), _join(place, key)) for key, part in schema.items()
    }


def _hint(place: str, path: str, key: str) -> str:
    """Return a sentence for errors about unknown keys of a loss term: where arguments of the loss must be written.

    Return an empty text if the key is not in a loss term.
    """
    if place not in ("objective.NAME", "task.NAME"):
        return ""
    loss = path.rpartition(".")[2]
    return f" Pass arguments of the loss in its spec: {path}.term='{loss}({key}=...)'."


def _value(part: Any, value: Any, path: str, place: str) -> Any:
    if isinstance(part, Key):
        return part.default if value is MISSING else _checked(part, value, path)
    value = None if value is MISSING else value
    if isinstance(part, OpenSection):
        entries = part.default if value is None else value
        if not isinstance(entries, Mapping):
            raise ConfigError(path, f"{entries!r} is not a section of named entries.")
        for name in entries:
            if not re.fullmatch(r"[A-Za-z_][\w-]*", str(name)):
                raise ConfigError(
                    path, f"{name!r} is not a valid entry name; use letters, digits, _ and -, with a letter or _ first."
                )
        inside = _join(place, "NAME")
        return {name: _merge(part.entry, entry, _join(path, name), inside) for name, entry in entries.items()}
    return _merge(part, {} if value is None else value, path, place)


def _frozen(value: Any) -> Any:
    """Convert lists, which JSON has instead of tuples, to tuples at every level."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _checked(key: Key, value: Any, path: str) -> Any:
    value = _frozen(value)
    if key.kind is SCHEDULE and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a schedule is always text, so that the command line can replace a number by a schedule
    if not key.kind.accepts(value):
        raise ConfigError(path, f"{value!r} is not {key.kind.wanted}. Meaning: {key.doc}.")
    return value


def override(config: ConfigDict, changes: Iterable[tuple[str, str]]) -> ConfigDict:
    """Return a copy of a config with the changes `--config.a.b=value` from the command line.

    The text of a value is converted to the type that the key requires, such as int.

    Args:
        config: a complete config.
        changes: pairs of key and text, such as ("data.name", "mnist5k"). In `objective`, `teachers`, `task`, `roles`
            and `streams`, a new name creates an entry: "teachers.large.model" creates the teacher `large`.

    Raises:
        ConfigError: a key is unknown, or a value is of the wrong kind.
    """
    tree = config.to_dict()
    new_entries: dict[str, list[str]] = {}  # section -> the entries that were there before
    for path, text in changes:
        *parents, last = path.split(".")
        schema: Any = SCHEMA
        node, place = tree, ""
        for number, name in enumerate(parents):
            section = ".".join(parents[: number + 1])
            if isinstance(schema, OpenSection):
                if name not in node:
                    new_entries[section] = [*map(str, node)]
                schema, node, place = schema.entry, node.setdefault(name, {}), _join(place, "NAME")
            elif isinstance(schema.get(name), Key):
                raise ConfigError(section, f"{name!r} is a key, not a section; set it as --config.{section}=VALUE.")
            elif name in schema:
                schema, node, place = schema[name], node[name], _join(place, name)
            else:
                raise ConfigError(section, f"unknown section {name!r}. {suggest(name, schema)}")
        keys = schema if isinstance(schema, Mapping) else schema.entry
        if isinstance(schema, OpenSection) or isinstance(keys.get(last), Mapping | OpenSection):
            raise ConfigError(path, f"{last!r} is a section; set one of its keys, as in --config.{path}.KEY=VALUE.")
        last = _renamed(place, last, ".".join(parents))
        if last not in keys:
            hint = _hint(place, path.rpartition(".")[0], last)
            raise ConfigError(path, f"unknown key {last!r}. {suggest(last, keys)}{hint}")
        node[last] = _read(schema[last], text, path)
    for section, others in new_entries.items():
        _check_new_entry(section, others, tree)
    return make(**tree)


def _check_new_entry(section: str, others: Sequence[str], tree: Mapping[str, Any]) -> None:
    """Check a config entry that the command line has created, such as a new teacher.

    Print a note if its name is similar to that of another entry.

    Args:
        section: path of the entry, such as "teachers.big".
        others: names of the entries that were there before.
        tree: the config with all changes, as nested dictionaries.

    Raises:
        ConfigError: the entry is a teacher without a model, so that the name of another teacher was probably meant.
    """
    kind, _, name = section.partition(".")
    if kind == "teachers" and not tree["teachers"][name].get("model"):
        raise ConfigError(section, f"there is no such teacher, and a new one needs a model. {suggest(name, others)}")
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.75)
    if close and kind not in ("objective", "task"):  # an unknown loss gets its own suggestion
        note(f"{section} is a new entry, beside {close[0]!r}; check its spelling")


def parse_changes(words: Iterable[str]) -> list[tuple[str, str]]:
    """Parse command-line arguments `--config.a.b=value` into a list of pairs ("a.b", "value").

    Raises:
        ConfigError: an argument has another form.
    """
    changes = []
    for word in words:
        path, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not equals or not path:
            is_key = word.startswith("--config.") and path
            cure = f"Write {word}=VALUE" if is_key else "Config keys are set by --config.a.b=value"
            raise ConfigError(word, f"unknown argument. {cure}; see --help.")
        changes.append((path, value))
    return changes


def _read(key: Key, text: str, path: str) -> Any:
    try:
        value = key.kind.read(text)
        if value is None:  # in a config file it stands for the default
            raise ValueError
        return value
    except ValueError:
        raise ConfigError(path, f"{text!r} is not {key.kind.wanted}. Meaning: {key.doc}.") from None


def conflicts(saved: Mapping[str, Any], config: ConfigDict) -> list[str]:
    """List the differences between two configs that forbid resuming a run, each as "KEY: saved value -> new value".

    The keys and sections in `CHANGEABLE`, such as `steps` and `logging`, may differ.

    Args:
        saved: config of the interrupted run.
        config: config with which the run is to be resumed.
    """
    old, new = (dict(_flat(_frozen_tree(tree))) for tree in (saved, config.to_dict()))
    paths = sorted(set(old) | set(new))
    changed = [path for path in paths if old.get(path) != new.get(path) and path.split(".")[0] not in CHANGEABLE]
    return [f"{path}: {old.get(path)!r} -> {new.get(path)!r}" for path in changed]


def _frozen_tree(tree: Any) -> Any:
    return {key: _frozen_tree(value) for key, value in tree.items()} if isinstance(tree, Mapping) else _frozen(tree)


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, _join(path, key))
        else:
            yield _join(path, key), value


def iter_keys(schema: Mapping[str, Any] = SCHEMA, path: str = "") -> Iterable[tuple[str, str, str]]:
    """Yield `(key, default, meaning)` as texts for every config key, such as "data.test", for `--help`.

    A section whose entries the user names is yielded too, as "teachers.NAME" with an empty default.

    Args:
        schema: the schema of a section, or of the whole config.
        path: key of the section, such as "data"; empty for the whole config.
    """
    for key, part in schema.items():
        key_path = _join(path, key)
        if isinstance(part, Key):
            yield key_path, repr(part.default), part.doc
        elif isinstance(part, OpenSection):
            yield f"{key_path}.NAME", "", part.doc
            yield from iter_keys(part.entry, f"{key_path}.NAME")
        else:
            yield from iter_keys(part, key_path)
