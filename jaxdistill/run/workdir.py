"""Own the folder of a run (workdir): write its config, compare it with a new config, and lock out other processes."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core.checkpoint import write_json
from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config import Config, conflicts, make
from jaxdistill.run.config_files import copy_source


def config_differences(old: dict[str, Any], config: Config) -> list[str]:
    """List the differences between a saved config and a new one that forbid resuming the saved run.

    Args:
        old: the saved config; keys that it lacks, because they are newer, get their defaults.
        config: the new config.

    Returns:
        A text for each difference, "KEY: saved value -> new value"; empty: the run may be resumed.
    """
    with contextlib.suppress(ConfigError):
        old = make(**old).to_dict()
    return conflicts(old, config)


def write_config(workdir: Path, record: Mapping[str, Any], source: str) -> dict[str, str]:
    """Write config.json and a copy of the config's Python file to the folder of a run.

    Args:
        workdir: folder of the run.
        record: content of config.json: the config, and how the results are made (code, versions, devices).
        source: file path of the Python file that defines the config; empty: none.

    Returns:
        `{"source": name of the copy, "source_sha256": its hash}`, which is added to config.json; without a Python file,
        `{"source": ""}`.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        source_record = copy_source(source, workdir)
        write_json(workdir / "config.json", {**record, **source_record})
        return source_record
    except OSError as error:
        raise _unwritable(workdir, error) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Return a context manager that locks a folder, so that no other process writes checkpoints to it.

    The operating system releases the lock when the process ends in any way. If the file system has no locks, there is
    no protection.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            cure = "Choose another folder, or wait until that process ends; the same command then resumes the run"
            raise ConfigError("--workdir", f"{str(folder)!r} is in use by {file.read()}. {cure}.") from None
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _unwritable(workdir: Path, error: OSError) -> ConfigError:
    return ConfigError("--workdir", f"{str(workdir)!r} cannot be written ({error}); choose another folder.")
