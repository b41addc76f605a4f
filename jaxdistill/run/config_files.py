"""Load a config from a Python file or from the config.json of an earlier run, and copy the file to a workdir."""

import hashlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.run.config import make


def load(path: str) -> ConfigDict:
    """Load a config from a Python file with a function `get_config()`, or from the `config.json` of an earlier run.

    A run keeps a copy of its Python file beside config.json. Loading config.json executes this copy, because it may
    register losses, models or data sets that the config names.

    Args:
        path: "FILE.py"; "FILE.py:NAME", which calls `get_config("NAME")`; or "FOLDER/config.json".

    Raises:
        ConfigError: the file does not exist, or does not define a config.
    """
    name, _, preset = path.partition(":")
    file = Path(name)
    if not file.is_file():
        problem = "is a folder" if Path(name).is_dir() else "does not exist"
        raise ConfigError("--config", f"{name!r} {problem}. Try configs/quickstart.py.")
    if file.suffix == ".json":
        return _from_json(file)
    module = run_file(file)
    if not hasattr(module, "get_config"):
        raise ConfigError("--config", f"{name!r} has no function get_config(); define it, and return make(...).")
    with _reporting(file):
        config = module.get_config(preset) if preset else module.get_config()
    if not isinstance(config, ConfigDict):
        raise ConfigError("--config", f"get_config() in {name!r} returned {type(config).__name__}; return make(...).")
    return make(**config.to_dict())


def choose(name: str, presets: Mapping[str, Any]) -> Any:
    """Return the preset (variant of a config) that `--config FILE.py:NAME` selects, for use in `get_config(name)`.

    Args:
        name: name of the preset on the command line.
        presets: all presets of the file, by name; values of any type.

    Raises:
        ConfigError: there is no preset of this name.
    """
    if name not in presets:
        raise ConfigError("--config", f"unknown preset {name!r}. {suggest(name, presets)}")
    return presets[name]


def source(path: str) -> str:
    """Return the absolute file path of the Python file that defines a config; an empty text if there is none.

    Args:
        path: the value of `--config`: "FILE.py" or "FILE.py:NAME", whose Python file is FILE.py; or
            "FOLDER/config.json", whose Python file is the copy in FOLDER.
    """
    file = Path(path.partition(":")[0]).absolute()
    if file.suffix != ".json":
        return str(file)
    name = json.loads(file.read_text()).get("source", "")
    return str(file.parent / name) if name and (file.parent / name).is_file() else ""


def copy_source(source: str, workdir: Path) -> dict[str, str]:
    """Copy the Python file of a config into the folder of a run.

    Args:
        source: file path of the Python file; empty: the config has none.
        workdir: folder of the run.

    Returns:
        `{"source": name of the copy, "source_sha256": its hash}`, to be saved in config.json; without a Python file,
        `{"source": ""}`.
    """
    if not source:
        return {"source": ""}
    content, copy = Path(source).read_bytes(), workdir / Path(source).name
    if not copy.is_file() or copy.read_bytes() != content:
        workdir.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    return {"source": copy.name, "source_sha256": hashlib.sha256(content).hexdigest()}


def _from_json(file: Path) -> ConfigDict:
    try:
        content = json.loads(file.read_text())
        tree, source, sha = dict(content["config"]), content.get("source", ""), content.get("source_sha256", "")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("--config", f"{str(file)!r} is not a saved config.json ({error}).") from None
    if source:
        copy = file.parent / Path(source).name  # only in this folder: a config.json must not run files elsewhere
        if not copy.is_file():
            sys.stderr.write(
                f"note: {copy}, which defined this config, is missing; parts that it registered are unknown\n"
            )
        elif hashlib.sha256(copy.read_bytes()).hexdigest() != sha:
            cure = f"Use --config {copy} to run the changed file"
            raise ConfigError("--config", f"{str(copy)!r} was changed since {str(file)!r} was written. {cure}.")
        else:
            run_file(copy)
    return make(**tree)


def run_file(file: Path) -> Any:
    """Execute the Python file of a config, and return it as a module.

    The module of NAME.py can afterwards be imported as `config_NAME`.

    Raises:
        ConfigError: the file is not a Python file, or its code fails.
    """
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError("--config", f"{str(file)!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _reporting(file):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _reporting(file: Path) -> Iterator[None]:
    """Turn any exception of a user's file into a ConfigError with the file and the line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file.resolve())]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        reason = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        raise ConfigError("--config", f"{str(file)!r} fails in line {line} ({reason}); correct this line.") from error
