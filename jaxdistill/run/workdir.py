"""The folder of a run: whose it is, and that nobody else writes there."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core.checkpoint import write_json
from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config import Config, conflicts, make
from jaxdistill.run.config_files import keep_source


def changes(old: dict[str, Any], config: Config) -> list[str]:
    """Where a saved config is another run's than this one; a key that came to the schema since then has its default."""
    with contextlib.suppress(ConfigError):
        old = make(**old).to_dict()
    return conflicts(old, config)


def claim(workdir: Path, record: Mapping[str, Any], source: str) -> dict[str, str]:
    """Writes config.json and the Python file that it came from; what it says of that file.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        kept = keep_source(source, workdir)
        write_json(workdir / "config.json", {**record, **kept})
        return kept
    except OSError as error:
        raise _unwritable(workdir, error) from None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder to this process: two runs that write the same checkpoints destroy each other's.

    The system lets go of it when the process ends, however it ends. It is a file that is locked, for a network's file
    system locks no folder; where it knows no locks at all, there is none.

    Raises:
        ConfigError: another process has it, or it cannot be written.
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
            cure = "Choose another, or wait for its end; the same command then goes on"
            raise ConfigError("--workdir", f"{str(folder)!r} is in use by {file.read()}. {cure}.") from None
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def _unwritable(workdir: Path, error: OSError) -> ConfigError:
    return ConfigError("--workdir", f"{str(workdir)!r} cannot be written ({error}); choose another.")
