"""Own the folder of a run (workdir): write its config, compare it with a new config, and lock out other processes."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.bucket import POINTER
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.notes import note, note_damage
from jaxdistill.run.config import Config, conflicts, make
from jaxdistill.run.config_files import copy_source
from jaxdistill.run.own_parts import own_parts
from jaxdistill.run.result_file import are_one_run

NAME_DIGITS = 16  # hexadecimal digits of the random name of a run


def config_differences(old: dict[str, Any], config: Config) -> list[str]:
    """List the differences between a saved config and a new one that forbid resuming the saved run.

    Args:
        old: the saved config; keys that it lacks, because they are newer, get their defaults.
        config: the new config.

    Returns:
        A list with a text for each difference, "KEY: saved value -> new value". If it is empty, the run may be resumed.
    """
    with contextlib.suppress(ConfigError):
        old = make(**old).to_dict()
    return conflicts(old, config)


def write_config(workdir: Path, record: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Write config.json and a copy of the config's Python file to the folder of a run.

    If the folder holds a run that is resumed or continued, the earlier records are kept in config.json under `earlier`,
    and the results of a finished run with another number of steps are renamed to results-STEPS.json.

    Args:
        workdir: folder of the run.
        record: content of config.json: the config, and how the results are made (code, versions, devices).
        source: file path of the Python file that defines the config, or '' if there is none.

    Returns:
        A dict of the entries that were added to the record. run: random name of the run, kept when it is resumed;
        source: name of the copied Python file; source_sha256: hash of this file; parts: the parts of the config that
        the user's own code registers, with their modules; not_copied: those parts that are not in the copied file;
        earlier: provenance and number of steps of each earlier process of this run.

    Raises:
        ConfigError: the folder cannot be written; or the Python file registers parts of the run in the folder, and has
            changed since the run began.
    """
    try:
        old, parts = saved_record(workdir), own_parts(record["config"])
        _require_same_parts(workdir, old, source)
        source_record = copy_source(source, workdir)
        not_copied = {part: module for part, module in parts.items() if module != f"config_{Path(source).stem}"}
        name = (old or {}).get("run") or secrets.token_hex(NAME_DIGITS // 2)
        added = {
            **source_record,
            "run": name,
            "parts": parts,
            "not_copied": not_copied,
            "earlier": _earlier_records(old),
        }
        _keep_results(workdir, record["config"]["steps"])
        seal.write(workdir / "config.json", {**record, **added})
    except IsADirectoryError:  # in place of one of these files
        raise
    except OSError as error:
        raise _unwritable(workdir, error) from None
    if not_copied:
        code = ", ".join(f"{part} (module {module})" for part, module in not_copied.items())
        note(f"config.json keeps no copy of the code that registers {code}. Keep it, to repeat the run")
    return added


def saved_record(workdir: Path) -> dict[str, Any] | None:
    """Return the record (config and provenance) of the run in a folder as a dict, or None if there is no run.

    The record is the content of config.json, or of results.json if config.json is missing or damaged.

    Raises:
        DamageError: the folder holds a run, and both records are damaged or missing.
    """
    file = workdir / "config.json"
    try:
        record = seal.read(file, {"config": dict})
    except FileNotFoundError:
        problem = f"{file}, the config of the run in this folder, is missing"
    except DamageError as error:
        problem = str(error)
    else:
        return _with_results_of_one_run(workdir, record)
    with contextlib.suppress(FileNotFoundError, DamageError):
        record = seal.read(workdir / "results.json", {"config": dict})
        note(f"{problem}; the config in results.json is used")
        return record
    if file.is_file() or _has_checkpoints(workdir):
        raise DamageError(f"{problem}; restore it from a copy, or choose another --workdir")
    return None


def _has_checkpoints(workdir: Path) -> bool:
    """Return True if the folder of a run has checkpoints of this run; those of runs in its subfolders do not count."""
    files = [f"{model}/checkpoints/{name}" for model in ("*", "teachers/*") for name in ("manifests/*.json", POINTER)]
    return any(any(workdir.glob(file)) for file in files)


def _with_results_of_one_run(workdir: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Require that results.json, if it is there, belongs to the same run as config.json, and return the record.

    Raises:
        DamageError: results.json belongs to another run.
    """
    try:
        results = seal.read(workdir / "results.json", {})
    except (FileNotFoundError, DamageError) as error:  # they are made again
        note_damage(error)
        return record
    if are_one_run(record.get("run"), results.get("run")):
        return record
    raise _other_run(workdir, "results.json")


def require_one_run(workdir: Path, name: str, content: Mapping[str, Any]) -> None:
    """Require that a file in the folder of a run belongs to the run that config.json names.

    Args:
        workdir: folder of the run.
        name: name of the file.
        content: content of the file, with the name of the run, from `write_config`, under the key `run`. A file of an
            earlier version has no name, and passes.

    Raises:
        DamageError: the file belongs to another run.
    """
    if not is_of_this_run(workdir, content):
        raise _other_run(workdir, name)


def _other_run(workdir: Path, name: str) -> DamageError:
    files = f"{workdir / 'config.json'} and {workdir / name}"
    cure = f"Restore the file that was replaced, or delete {name}, which the same command writes again"
    return DamageError(f"{files} are of two runs. {cure}.")


def is_of_this_run(workdir: Path, results: Mapping[str, Any]) -> bool:
    """Return True if results belong to the run that the config.json of a folder names.

    Return True also if one of them has no name, or config.json is missing or damaged.
    """
    try:
        return are_one_run(seal.read(workdir / "config.json", {}).get("run"), results.get("run"))
    except (FileNotFoundError, DamageError):
        return True


def agreed_name(name: str) -> str:
    """Broadcast a name of a run, or a hash, from process 0 to all processes; every process of the run must call this.

    Args:
        name: `NAME_DIGITS` hexadecimal digits, or ''; only the value in process 0 counts.

    Returns:
        The name in process 0.
    """
    if jax.process_count() == 1:
        return name
    from jax.experimental import multihost_utils

    mine = np.frombuffer(bytes.fromhex(name or "0" * NAME_DIGITS), np.uint8)
    shared = bytes(np.asarray(multihost_utils.broadcast_one_to_all(mine))).hex()
    return shared if shared != "0" * NAME_DIGITS else ""


def check_same_parts(workdir: Path, source: str) -> None:
    """Require that the Python file that registers parts of the run in a folder has not changed since the run began.

    Args:
        workdir: folder of the run.
        source: file path of the Python file, or '' if there is none.

    Raises:
        ConfigError: the file has changed.
    """
    _require_same_parts(workdir, saved_record(workdir), source)


def meet() -> None:
    """Wait until every process of the run has called this, such as before process 0 rewrites files that others read."""
    agreed_name("")


def _require_same_parts(workdir: Path, old: Mapping[str, Any] | None, source: str) -> None:
    recorded = (old or {}).get("source_sha256")
    if not (old and recorded and source) or seal.sha256(Path(source)) == recorded:
        return
    parts = [part for part, module in old.get("parts", {}).items() if module == f"config_{Path(old['source']).stem}"]
    if parts:
        problem = f"{source!r} registers {', '.join(parts)}, and was changed since the run in {str(workdir)!r} began"
        cure = f"Choose another --workdir, or resume that run with the file {workdir / old['source']}"
        raise ConfigError("--config", f"{problem}. {cure}.")


def _earlier_records(old: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if old is None:
        return []
    kept = {key: old[key] for key in ("provenance", "source_sha256") if key in old}
    return [*old.get("earlier", []), {"steps": old["config"].get("steps"), **kept}]


def finished_record(workdir: Path) -> dict[str, dict[str, Any]]:
    """Return the contents of config.json and results.json of a finished run, by file name; empty if it is not finished.

    If a finished run is repeated and nothing has to be trained, these contents are written again, so that the record
    still describes how the models were trained.
    """
    names = ("config.json", "results.json")
    with contextlib.suppress(FileNotFoundError, DamageError):
        record, results = (seal.read(workdir / name, {"config": dict}, required=True) for name in names)
        if are_one_run(record.get("run"), results.get("run")):
            return {"config.json": record, "results.json": results}
    return {}


def _keep_results(workdir: Path, steps: int) -> None:
    """Rename results.json to results-STEPS.json if a finished run is continued to another number of steps."""
    with contextlib.suppress(FileNotFoundError, DamageError):  # damaged results are made again
        finished = seal.read(workdir / "results.json", {"config": dict})["config"].get("steps")
        if finished != steps:
            (workdir / "results.json").rename(workdir / f"results-{finished}.json")


@contextlib.contextmanager
def locked(
    folder: Path, option: str = "--workdir", cure: str = "choose another folder", wait: bool = False
) -> Iterator[None]:
    """Return a context manager that locks a folder, so that no other process writes checkpoints to it.

    The operating system releases the lock when the process ends in any way. If the file system has no locks, there is
    no protection.

    Args:
        folder: the folder.
        option: argument of the command that names the folder, for error messages.
        cure: advice for the error message if the folder cannot be written.
        wait: if True, wait until no other process holds the lock.

    Raises:
        ConfigError: another process holds the lock, and `wait` is False; or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except IsADirectoryError:
        raise
    except OSError as error:
        raise ConfigError(option, f"{str(folder)!r} cannot be written ({error}); {cure}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            problem = f"{str(folder)!r} is in use by {file.read()}"
            if not wait:
                again = "Wait until that process ends, and repeat the command, or choose another folder"
                raise ConfigError(option, f"{problem}. {again}.") from None
            note(f"{problem}; waiting for it")
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _unwritable(workdir: Path, error: OSError) -> ConfigError:
    return ConfigError("--workdir", f"{str(workdir)!r} cannot be written ({error}); choose another folder.")
