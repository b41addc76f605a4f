"""Config files: loading a Python file or the record of an earlier run, and keeping the source in a workdir."""

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
    """Loads the config of a file: a Python module with `get_config()`, or the `config.json` of an earlier run.

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
    module = run_file(file)
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
            run_file(kept)
    return make(**tree)


def run_file(file: Path) -> Any:
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
