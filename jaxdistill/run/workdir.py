"""Own a workdir: write and compare its config, and lock it against other processes."""

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
    """List the differences between a saved config and this one. Keys that the saved config lacks get their defaults."""
    with contextlib.suppress(ConfigError):
        old = make(**old).to_dict()
    return conflicts(old, config)


def write_config(workdir: Path, record: Mapping[str, Any], source: str) -> dict[str, str]:
    """Write config.json and a copy of the config's Python file; return what config.json records of the file.

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
    """Lock a folder for this process, because two runs that write the same checkpoints would damage them.

    The operating system releases the lock when the process ends, in any way. The lock is on a file, because network
    file systems cannot lock a folder. On a file system without locks there is no protection.

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
