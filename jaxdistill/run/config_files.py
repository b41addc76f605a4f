"""Load a config from a Python file or from the config.json of an earlier run, and copy the file to a workdir."""

import hashlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxdistill.core import seal
from jaxdistill.core.atomic import new_file
from jaxdistill.core.errors import ConfigError, DamageError, one_line, suggest
from jaxdistill.core.notes import note
from jaxdistill.run.config import make
from jaxdistill.run.own_parts import unregistered


def load_config(path: str, trust_source: bool = False) -> ConfigDict:
    """Load a config from a Python file with a function `get_config()`, or from the `config.json` of an earlier run.

    A Python file is executed. A config.json is data: loading it executes nothing. A run keeps a copy of its Python file
    beside config.json, because the file may register losses, models or data sets that the config names; this copy is
    executed only with `trust_source`.

    Args:
        path: "FILE.py"; "FILE.py:NAME", which calls `get_config("NAME")`; or "FOLDER/config.json".
        trust_source: when loading a config.json, execute the Python file that lies beside it, if its hash shows that it
            is the copy that the run has made; a changed file is refused.

    Raises:
        ConfigError: the file does not exist, or does not define a config; or the config names parts that its Python
            file registers, and `trust_source` is not set.
        DamageError: config.json has changed since it was written.
    """
    name, _, preset = path.partition(":")
    file = Path(name)
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "is a device or a pipe"
        problem = kind if file.exists() else "does not exist"
        raise ConfigError("--config", f"{name!r} {problem}. Try --preset demo.")
    if file.suffix == ".json":
        return _from_json(file, trust_source)
    module = run_file(file)
    if not hasattr(module, "get_config"):
        raise ConfigError("--config", f"{name!r} has no function get_config(); define it, and return make(...).")
    if preset and callable(module.get_config) and not _takes_a_name(module.get_config):
        raise ConfigError("--config", f"get_config() in {name!r} takes no name. Leave ':{preset}' out.")
    with _reporting(file):
        config = module.get_config(preset) if preset else module.get_config()
    if inspect.iscoroutine(config):
        config.close()
    if not isinstance(config, ConfigDict):
        raise ConfigError("--config", f"get_config() in {name!r} returned {type(config).__name__}; return make(...).")
    return make(**config.to_dict())


def _takes_a_name(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind("name")
    except TypeError:
        return False
    except ValueError:  # a function in C does not tell
        return True
    return True


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
    copy, _ = _source_of(file, seal.read(file, {}))
    return str(copy) if copy and copy.is_file() else ""


def copy_source(source: str, workdir: Path) -> dict[str, str]:
    """Copy the Python file of a config into the folder of a run.

    Args:
        source: file path of the Python file; empty if the config has none.
        workdir: folder of the run.

    Returns:
        `{"source": name of the copy, "source_sha256": its hash}`, to be saved in config.json; without a Python file,
        `{"source": ""}`.
    """
    if not source:
        return {"source": ""}
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise ConfigError("--config", f"{source!r} cannot be read any more ({error.strerror}).") from None
    copy = workdir / Path(source).name
    if not copy.is_file() or copy.read_bytes() != content:
        if copy.is_file():  # the file of an earlier part of this run, which its record names by this hash
            copy.replace(copy.with_name(f"{copy.stem}-{seal.sha256(copy)[:12]}.py"))
        with new_file(copy) as draft:
            draft.write_bytes(content)
    return {"source": copy.name, "source_sha256": hashlib.sha256(content).hexdigest()}


def _from_json(file: Path, trust_source: bool) -> ConfigDict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        tree, parts = dict(content["config"]), content.get("parts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = "its key 'config' is missing" if isinstance(error, KeyError) else one_line(error)
        cure = "Give the config.json of a run, or a Python file with get_config"
        raise ConfigError("--config", f"{str(file)!r} is not the saved config of a run ({problem}). {cure}.") from None
    try:
        seal.read(file, {})
    except DamageError as error:
        cure = "Change keys by --config.a.b=value; or, if this change is meant, delete the key 'seal' of the file"
        raise DamageError(f"{error}. {cure}") from None
    copy, digest = _source_of(file, content)
    if copy and trust_source:
        if not copy.is_file():
            raise ConfigError("--trust-source", f"{str(copy)!r}, which defined this config, is missing.")
        if copy.is_symlink():
            raise ConfigError(
                "--trust-source", f"{str(copy)!r} is a link; only a file of the record's own folder is run."
            )
        content_of_copy = copy.read_bytes()
        if hashlib.sha256(content_of_copy).hexdigest() != digest:
            cure = f"Use --config {copy} to run the changed file"
            raise ConfigError("--config", f"{str(copy)!r} was changed since {str(file)!r} was written. {cure}.")
        run_file(copy, content_of_copy)
    if parts is None and copy and not trust_source:  # a record of an earlier version does not list them
        note(f"{copy}, which defined this config, is not run. If a part is unknown, read it, and add --trust-source")
    if missing := unregistered(parts if isinstance(parts, dict) else {}):
        raise ConfigError("--config", _lacking(file, copy, missing))
    return make(**tree)


def _lacking(file: Path, copy: Path | None, missing: Sequence[str]) -> str:
    """Return the error message about parts (losses, ...) that a config.json names, but no code has registered."""
    names = f"{str(file)!r} names {', '.join(missing)}"
    if copy is None:
        return f"{names}, which the code of that run registered, and the record has no copy of it. Register it first."
    cure = f"Read {copy}, then add --trust-source (in Python: load_config(..., trust_source=True))"
    return f"{names}, which {copy.name} registers; loading a record runs no code. {cure}."


def _source_of(file: Path, content: Mapping[str, Any]) -> tuple[Path | None, str]:
    """Return the path and the recorded hash of the Python file that a run has copied beside its config.json.

    Return None and an empty text if the run has copied no file.

    Raises:
        ConfigError: the record names a file outside of its own folder.
    """
    name, digest = content.get("source", ""), content.get("source_sha256", "")
    if not name:
        return None, ""
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]+\.py", name):
        problem = f"{str(file)!r} names the source {name!r}, which is not a Python file in its own folder"
        raise ConfigError("--config", f"{problem}. Correct the key 'source', or use a Python file.")
    return file.parent / name, str(digest)


def run_file(file: Path, content: bytes | None = None) -> Any:
    """Execute the Python file of a config, and return it as a module.

    The module of NAME.py can afterwards be imported as `config_NAME`. Bytecode that Python or somebody else has kept
    beside the file is not used, because it may come from another file than the one whose hash is recorded.

    Args:
        file: the Python file.
        content: its bytes, if they were read before, such as for their hash.

    Raises:
        ConfigError: the file is not a Python file, or its code fails.
    """
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError("--config", f"{str(file)!r} is not a Python file.")
    content = file.read_bytes() if content is None else content
    if b"\0" in content:
        raise ConfigError("--config", f"{str(file)!r} has zero bytes, as no Python file has. Save it as UTF-8.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with _reporting(file):
        exec(compile(content, spec.origin or str(file), "exec", dont_inherit=True), module.__dict__)
    return module


@contextmanager
def _reporting(file: Path) -> Iterator[None]:
    """Return a context manager that turns an exception in the user's Python file into a ConfigError with the line."""
    try:
        yield
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: a config does not end the program
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file.resolve())]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        reason = f"{type(error).__name__}: {getattr(error, 'msg', None) or one_line(error)}"
        raise ConfigError("--config", f"{str(file)!r} fails in line {line} ({reason}); correct this line.") from error
