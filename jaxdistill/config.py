"""The schema of a run: every key, its default, its kind and its meaning, in one place.

Imports no JAX, so that mistakes show at once.
A config file holds differences only:

    from jaxdistill.config import make

    def get_config():
        return make(steps=1000, student=dict(model="mlp(widths=(64,), classes=10)"), ...)
"""

import ast
import hashlib
import importlib.util
import json
import math
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxdistill.errors import ConfigError, suggest


class Key(NamedTuple):
    """One key: its default, what kind of value it takes (see `KINDS`), and what it means."""

    default: Any
    kind: str
    doc: str


class Open(NamedTuple):
    """A section whose entries the user names; each entry follows `entry`."""

    entry: dict[str, Key]
    default: dict[str, dict[str, Any]]
    doc: str


TERM = {
    "term": Key("", "spec", "the loss, such as 'kd(temperature=4.0)'; empty: the entry's own name"),
    "weight": Key("1.0", "schedule", "its weight, a number or a schedule"),
    "stream": Key("", "text", "the stream that it reads; empty: as the loss says, mostly train"),
}
RULES_DOC = "(path regex, axes of the last dimensions) pairs; empty: parallel/sharding.py's table"

SCHEMA: dict[str, Any] = {
    "title": Key("", "text", "heading of the page"),
    "seed": Key(0, "count", "of initialisation, data order and augmentation"),
    "steps": Key(1000, "positive", "optimiser steps of the student, and of the control"),
    "batch_size": Key(128, "positive", "rows of the global batch"),
    "accumulate": Key(1, "positive", "pieces in which the student runs through a batch; saves memory"),
    "chunks": Key(1, "positive", "pieces of a sequence in which a factored head (of a language model) is computed"),
    "kernels": Key(
        "xla",
        "kernels",
        "what computes the terms of those pieces from their logits: 'xla', or 'pallas', one kernel for all of them, "
        "which reads each logit once on a TPU, once a pass on a GPU",
    ),
    "dtype": Key("float32", "dtype", "what students and teachers compute in; parameters stay float32"),
    "student": {
        "model": Key("", "spec", "the network, such as 'mlp(widths=(64,), classes=10)'"),
        "rules": Key((), "rules", RULES_DOC),
    },
    "teachers": Open(
        {
            "model": Key("", "spec", "the network"),
            "checkpoint": Key(
                "", "text", "folder of a run of ours, with @best, @last or @STEP; empty: train it here first"
            ),
            "cache": Key("", "spec", "its outputs, written by jaxdistill.cache: 'outputs(folder=...)'; empty: live"),
            "apart": Key(
                "",
                "spec",
                "devices of its own: 'submesh(devices=2, layers=(1, 2))'; empty: the student's",
            ),
            "quantized": Key(
                "",
                "quantized",
                "'int8' or 'fp8': its kernels are kept, and its products taken, in 8 bits; empty: dtype",
            ),
            "reads": Key("", "text", "how the names of the fields begin that it reads, such as 'teacher/' of aligned"),
            "classes": Key(
                (), "classes", "its number of each class of the data, -1 for one that it does not know; empty: the same"
            ),
            "steps": Key(0, "count", "steps of its training here; 0: needs a checkpoint, or a pretrained model"),
            "rate": Key("", "schedule", "learning rate of its training here; empty: as the student's"),
            "augment": Key((), "specs", "transforms of its training batches here"),
            "rules": Key((), "rules", RULES_DOC),
        },
        {},
        "the teachers, by name",
    ),
    "fusion": Key("single()", "spec", "how several teachers become one"),
    "objective": Open(TERM, {}, "what the student minimises: a weighted sum of terms, by name"),
    "task": Open(
        TERM,
        {"cross_entropy": {}},
        "what is minimised without a teacher: by the control, and by teachers trained here",
    ),
    "control": Key(True, "flag", "train the same student without a teacher, for comparison"),
    "step": Key("offline()", "spec", "the algorithm"),
    "optimizer": Key("adamw()", "spec", "direction of a step"),
    "rate": Key("0.001", "schedule", "learning rate, a number or a schedule"),
    "clip_norm": Key(0.0, "share", "greatest norm of the gradient of each role, such as the student; 0: as it is"),
    "roles": Open(
        {
            "optimizer": Key("adamw()", "spec", "direction of a step"),
            "rate": Key("0.001", "schedule", "learning rate"),
        },
        {},
        "an optimiser of its own for a role: student, terms (projectors), fusion (gates), teachers that learn, weights",
    ),
    "data": {
        "name": Key("mnist5k", "text", "a TensorFlow Datasets name, or the spec of a registered data set"),
        "train": Key("train", "text", "split to learn from, such as 'train[:80%]'"),
        "test": Key("test", "text", "split to be judged on"),
        "select": Key(
            "",
            "spec",
            "which of the training records the student and its control learn from, such as 'random(share=0.1)' or "
            "\"hardest(share=0.1, cache='FOLDER')\"; empty: all",
        ),
        "order": Key(
            "",
            "spec",
            "in which order they come, such as 'tasks(groups=((0, 1), (2, 3)), steps=100)', to the student and its "
            "control; empty: shuffled over and over",
        ),
        "folder": Key("", "text", "where prepared data lies; empty: $JAXDISTILL_DATA or ~/.cache/jaxdistill/data"),
        "tokens": Key(
            "", "spec", "how text becomes numbers, such as \"sentences(tokenizer='FOLDER', length=64)\"; empty: no text"
        ),
        "augment": Key((), "specs", "transforms of the student's training batches, such as ('shift(pixels=2)',)"),
    },
    "streams": Open(
        {
            "split": Key("", "text", "which records, such as 'train[90%:]'"),
            "batch_size": Key(0, "count", "rows of its batches; 0: as the training batches"),
            "augment": Key((), "specs", "transforms of its batches"),
        },
        {},
        "further streams that a step or a term reads beside the training batches, by name, such as quiz",
    ),
    "evaluate": {
        "every": Key(200, "positive", "steps from one evaluation (and checkpoint) to the next"),
        "batch_size": Key(512, "positive", "rows of an evaluation batch"),
        "layers": Key(((-1, -1),), "pairs", "(student layer, teacher layer) pairs whose CKA is measured"),
    },
    "mesh": {
        "backend": Key("jit", "backend", "jit over a mesh, or pmap over the rows"),
        "data": Key(-1, "size", "devices along data; -1: all that are left"),
        "fsdp": Key(1, "size", "devices along fsdp: rows and parameters"),
        "tensor": Key(1, "size", "devices along tensor: parameters"),
    },
    "distributed": {
        "coordinator": Key("", "address", "host:port of process 0; 'auto': found from the cluster; empty: one process"),
        "processes": Key(1, "positive", "how many there are"),
        "process": Key(0, "count", "which of them this is"),
    },
    "logging": {
        "every": Key(20, "positive", "steps from one line of the log to the next"),
        "tensorboard": Key(True, "flag", "write TensorBoard events"),
        "wandb": Key("", "text", "Weights & Biases project; empty: none"),
        "trace": Key(0, "count", "steps of the student's run to profile, after 10 to warm up; 0: none"),
        "compilation_cache": Key("", "text", "folder that keeps compiled programs between runs; empty: none"),
    },
}

# What may differ between a workdir and the config that resumes it.
FREE = ("steps", "logging", "mesh", "distributed")


def _is(*types: type) -> Any:
    return lambda v: isinstance(v, types) and not (isinstance(v, bool) and bool not in types)


def _is_rule(v: Any) -> bool:
    try:
        pattern, axes = v
        re.compile(pattern)
        named = [axis for axis in axes if axis is not None]  # no axis can split two dimensions of one array
        return isinstance(axes, tuple) and set(named) <= {"data", "fsdp", "tensor"} and len(set(named)) == len(named)
    except (TypeError, ValueError, re.error):
        return False


LIMIT = 2**31  # steps are counted in int32, and seeds are one

KINDS: dict[str, tuple[Any, str]] = {
    "text": (_is(str), "text"),
    "spec": (_is(str), "a spec string such as 'name(key=1.0)'"),
    "specs": (lambda v: isinstance(v, tuple) and all(isinstance(x, str) for x in v), "a tuple of spec strings"),
    "schedule": (_is(str), "a number, or a schedule such as 'cosine(start=0.9, end=0.1)'"),
    "flag": (_is(bool), "True or False"),
    "count": (lambda v: _is(int)(v) and 0 <= v < LIMIT, "a whole number, 0 or more, below 2^31"),
    "positive": (lambda v: _is(int)(v) and 0 < v < LIMIT, "a whole number, 1 or more, below 2^31"),
    "address": (
        lambda v: v in ("", "auto") or (isinstance(v, str) and re.fullmatch(r"[^\s:]+:\d{1,5}", v) is not None),
        "'auto', or the host:port of process 0, such as 'node0:1234'",
    ),
    "size": (lambda v: _is(int)(v) and (v > 0 or v == -1), "a whole number, 1 or more, or -1"),
    "share": (lambda v: _is(int, float)(v) and 0 <= v < math.inf, "a finite number, 0 or more"),
    "dtype": (lambda v: v in ("float32", "bfloat16"), "'float32' or 'bfloat16'"),
    "quantized": (lambda v: v in ("", "int8", "fp8"), "'int8' or 'fp8'"),
    "kernels": (lambda v: v in ("xla", "pallas"), "'xla' or 'pallas'"),
    "backend": (lambda v: v in ("jit", "pmap"), "'jit' or 'pmap'"),
    "classes": (
        lambda v: isinstance(v, tuple) and all(_is(int)(c) and c >= -1 for c in v),
        "a tuple of numbers of classes, such as (1, 0, -1)",
    ),
    "pairs": (
        lambda v: (
            isinstance(v, tuple) and all(isinstance(p, tuple) and len(p) == 2 and all(map(_is(int), p)) for p in v)
        ),
        "pairs of layers such as ((-1, -1),)",
    ),
    "rules": (
        lambda v: isinstance(v, tuple) and all(map(_is_rule, v)),
        "(regex, axes) pairs such as (('kernel$', ('fsdp', 'tensor')),), an axis being data, fsdp, tensor or None",
    ),
}


def make(**differences: Any) -> ConfigDict:
    """A whole config: the schema's defaults, and what differs from them.

    Raises:
        ConfigError: for an unknown key, or a value of the wrong kind.
    """
    return _ordered(_merge(SCHEMA, differences, "")).lock()


def _ordered(tree: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict in the order in which it was written: teachers are numbered as they are named."""
    found = ConfigDict(type_safe=False, sort_keys=False)
    for key, value in tree.items():
        found[key] = _ordered(value) if isinstance(value, Mapping) else value
    return found


def differ(config: ConfigDict, **differences: Any) -> ConfigDict:
    """A copy of a config with other values for some of its keys.

    A section with keys of its own, such as `data`, keeps those that are not given; one whose entries the user names,
    such as `teachers` or `objective`, is replaced.
    """
    old = config.to_dict()

    def other(key: str, given: Any) -> Any:
        whole = isinstance(SCHEMA.get(key), Mapping) and isinstance(given, Mapping)
        return {**old[key], **given} if whole else given

    return make(**{**old, **{key: other(key, given) for key, given in differences.items()}})


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _merge(schema: Mapping[str, Any], given: Any, path: str) -> dict[str, Any]:
    """The schema's defaults, overridden by what is given, checked."""
    if not isinstance(given, Mapping):
        raise ConfigError(path, f"{given!r} is not a section; it holds the keys {', '.join(schema)}.")
    for key in given:
        if key not in schema:
            raise ConfigError(_join(path, str(key)), f"unknown key {key!r}. {suggest(str(key), schema)}")
    return {key: _value(part, given.get(key), _join(path, key)) for key, part in schema.items()}


def _value(part: Any, given: Any, path: str) -> Any:
    if isinstance(part, Key):
        return part.default if given is None else _checked(part, given, path)
    if isinstance(part, Open):
        entries = part.default if given is None else given
        if not isinstance(entries, Mapping):
            raise ConfigError(path, f"{entries!r} is not a section of named entries.")
        for name in entries:
            if not re.fullmatch(r"[A-Za-z_][\w-]*", str(name)):
                raise ConfigError(path, f"{name!r} names an entry; a name is letters, digits, _ and -, a letter first.")
        return {name: _merge(part.entry, entry, _join(path, name)) for name, entry in entries.items()}
    return _merge(part, {} if given is None else given, path)


def _frozen(value: Any) -> Any:
    """Lists (of JSON) as tuples, all the way down."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _checked(key: Key, value: Any, path: str) -> Any:
    value = _frozen(value)
    if key.kind == "schedule" and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # one type, so that the command line may replace a number by a schedule
    accepts, wanted = KINDS[key.kind]
    if not accepts(value):
        raise ConfigError(path, f"{value!r} is not {wanted}. It is: {key.doc}.")
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
        node = tree
        for number, name in enumerate(parents):
            here = ".".join(parents[: number + 1])
            if isinstance(schema, Open):
                schema, node = schema.entry, node.setdefault(name, {})
            elif isinstance(schema.get(name), Key):
                raise ConfigError(here, f"{name!r} is a key, not a section; set it as --config.{here}=VALUE.")
            elif name in schema:
                schema, node = schema[name], node[name]
            else:
                raise ConfigError(here, f"unknown section {name!r}. {suggest(name, schema)}")
        inner = schema if isinstance(schema, Mapping) else schema.entry
        if isinstance(schema, Open) or isinstance(inner.get(last), Mapping | Open):
            raise ConfigError(path, f"{last!r} is a section; set one of its keys, as in --config.{path}.KEY=VALUE.")
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
    if key.kind in ("text", "spec", "schedule", "dtype", "kernels", "quantized", "backend", "address"):
        return text
    if key.kind == "flag":
        text = {"true": "True", "false": "False"}.get(text.lower(), text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that a literal can do
        raise ConfigError(path, f"{text!r} is not {KINDS[key.kind][1]}. It is: {key.doc}.") from None


def load(path: str) -> ConfigDict:
    """The config of a file: a Python module with `get_config()`, or the `config.json` of an earlier run.

    `FILE.py:WORD` calls `get_config("WORD")`. Beside a JSON lies a copy of the Python file that it came from; that copy
    is run again, because it may register parts.

    Raises:
        ConfigError: if there is no such file, or it gives no config.
    """
    name, _, word = path.partition(":")
    file = Path(name)
    if not file.is_file():
        kind = "is a folder" if Path(name).is_dir() else "is no file"
        raise ConfigError("--config", f"{name!r} {kind}. Try configs/quickstart.py.")
    if file.suffix == ".json":
        return _from_json(file)
    module = _run(file)
    if not hasattr(module, "get_config"):
        raise ConfigError("--config", f"{name!r} has no function get_config().")
    with _mistakes_of(file):
        config = module.get_config(word) if word else module.get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError("--config", f"get_config() in {name!r} returned {type(config).__name__}; return make(...).")
    return make(**config.to_dict())


def choose(word: str, presets: Mapping[str, Any]) -> Any:
    """The preset of a word, as `FILE.py:WORD` gives it to `get_config`.

    Raises:
        ConfigError: there is none of this name.
    """
    if word not in presets:
        raise ConfigError("--config", f"unknown preset {word!r}. {suggest(word, presets)}")
    return presets[word]


def source(path: str) -> str:
    """The Python file that `load(path)` runs, absolute; of a saved config.json, the copy beside it."""
    file = Path(path.partition(":")[0]).absolute()
    if file.suffix != ".json":
        return str(file)
    name = json.loads(file.read_text()).get("source", "")
    return str(file.parent / name) if name and (file.parent / name).is_file() else ""


def keep_source(source: str, workdir: Path) -> dict[str, str]:
    """Copies the Python file of a config into a workdir; its name there and its SHA-256, for config.json."""
    if not source:
        return {"source": ""}
    content, kept = Path(source).read_bytes(), workdir / Path(source).name
    if not kept.is_file() or kept.read_bytes() != content:
        workdir.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
    return {"source": kept.name, "source_sha256": hashlib.sha256(content).hexdigest()}


def _from_json(file: Path) -> ConfigDict:
    try:
        content = json.loads(file.read_text())
        tree, source, sha = dict(content["config"]), content.get("source", ""), content.get("source_sha256", "")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("--config", f"{str(file)!r} is not a saved config.json ({error}).") from None
    if source:
        kept = file.parent / Path(source).name  # never a file elsewhere: a config that is handed on is data
        if not kept.is_file():
            sys.stderr.write(
                f"note: {kept}, which made this config, is gone; parts that it registered are unknown now\n"
            )
        elif hashlib.sha256(kept.read_bytes()).hexdigest() != sha:
            cure = f"Give it as --config {kept} to run what it says now"
            raise ConfigError("--config", f"{str(kept)!r} was changed since {str(file)!r} was written. {cure}.")
        else:
            _run(kept)
    return make(**tree)


def _run(file: Path) -> Any:
    """Executes a config file as a module; what it defines stays importable under its name."""
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError("--config", f"{str(file)!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _mistakes_of(file):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _mistakes_of(file: Path) -> Iterator[None]:
    """Turns whatever a user's file raises into one line that says where."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file.resolve())]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        why = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        raise ConfigError("--config", f"{str(file)!r} fails in line {line} ({why}); correct it there.") from error


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
