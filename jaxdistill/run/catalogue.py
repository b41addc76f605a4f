"""List the parts that a config can name, with their first sentence and their arguments."""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxdistill.data
import jaxdistill.export.devices
import jaxdistill.export.formats
import jaxdistill.run.parts
import jaxdistill.teachers
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.core.registry import Registry, list_arguments
from jaxdistill.data.builders import BUILDERS
from jaxdistill.run import presets

KINDS = {name: part for name, part in vars(registry).items() if isinstance(part, Registry)}  # "losses", "fusions", ...
PRESETS = "presets"


def names() -> list[str]:
    """Return the kinds of parts that a config can name, such as "losses", as a list that ends with "presets"."""
    return [*sorted(KINDS), PRESETS]


def listing(kind: str) -> str:
    """Return the list of all parts of a kind, such as all losses, as text.

    Each part has two lines: its name with its arguments (presets have none), and the first sentence of its docstring.

    Args:
        kind: one of `names`.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind == PRESETS:
        lines = [f"{name}\n    {_first_sentence(_preset_text(name))}" for name in presets.names()]
        return "\n".join([*lines, "", "Use one with: jaxdistill train --preset NAME --workdir DIR"])
    if kind not in KINDS:
        raise ConfigError("KIND", f"unknown kind {kind!r}. {suggest(kind, names())}")
    factories = KINDS[kind].factories
    lines = [
        f"{name}({_arguments(factories[name])})\n    {_first_sentence(_text(factories[name]))}" for name in KINDS[kind]
    ]
    if kind == "datasets":
        lines += [f"{name}\n    Comes inside a software package; it is fetched once." for name in sorted(BUILDERS)]
        lines += ["any name of TensorFlow Datasets\n    Such as cifar10, prepared as ArrayRecord."]
    return "\n".join([*lines, "", f"`jaxdistill list {kind} NAME` prints all about one."])


def details(kind: str, name: str) -> str:
    """Return the full description of one part, such as a loss, as text: name, arguments and docstrings.

    Args:
        kind: kind of the part, one of `names`.
        name: name of the part.

    Raises:
        ConfigError: there is no such kind or part.
    """
    if kind == PRESETS:
        if name not in presets.names():
            raise ConfigError("NAME", f"unknown preset {name!r}. {suggest(name, presets.names())}")
        return _preset_text(name)
    if kind not in KINDS:
        raise ConfigError("KIND", f"unknown kind {kind!r}. {suggest(kind, names())}")
    factories = KINDS[kind].factories
    if kind == "datasets" and name in BUILDERS:
        return f"{name}\n\n{_builder_text(name)}"
    if name not in factories:
        known = [*factories, *(BUILDERS if kind == "datasets" else ())]
        raise ConfigError("NAME", f"unknown {KINDS[kind].kind} {name!r}. {suggest(name, known)}")
    factory = factories[name]
    module = inspect.getdoc(inspect.getmodule(factory)) or ""
    return f"{name}({_arguments(factory)})\n\n{_text(factory)}\n\n{module}"


def _arguments(factory: Callable[..., Any]) -> str:
    parameters = inspect.signature(factory, eval_str=True).parameters
    set_by_program = ("split", "folder", "student", "teachers", "objective", "optimizer")  # the program sets these
    return list_arguments({name: each for name, each in parameters.items() if name not in set_by_program})


def _text(factory: Callable[..., Any]) -> str:
    return inspect.getdoc(factory) or ""


def _preset_text(name: str) -> str:
    return ast.get_docstring(ast.parse((presets.FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""


def _builder_text(name: str) -> str:
    """Return the docstring of the module that builds a data set, without importing the module.

    Importing it would need TensorFlow Datasets.
    """
    file = Path(jaxdistill.data.__file__).parent / "builders" / f"{BUILDERS[name]}.py"
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.partition("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph if end < 0 else paragraph[: end + 1]
