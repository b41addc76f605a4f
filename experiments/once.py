"""A run of a study is made once: what is finished is read, what was cut goes on, and nobody runs into it meanwhile."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

import jaxdistill
from jaxdistill.config import conflicts
from jaxdistill.errors import ConfigError
from jaxdistill.report.logs import read_log


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else runs into this folder meanwhile. The system frees the lock of a process that was killed.

    Raises:
        ConfigError: somebody does already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            cure = "Wait for it, or choose another"
            raise ConfigError("--workdir", f"{str(folder)!r} is in use by {file.read()}. {cure}.") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def finished(config: ConfigDict, folder: Path) -> dict[str, Any] | None:
    """What a run has left, with the last line of its student's log, if it ran to the end of this config."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    results = json.loads(file.read_text())
    if results["config"]["steps"] != config.steps or conflicts(results["config"], config):
        return None
    return {**results, "log": read_log(folder / "student" / "log.jsonl").train[-1]}


def ran(config: ConfigDict, folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, which is made, or resumed, if it is not finished."""
    if not (results := finished(config, folder)):
        with locked(folder):
            return jaxdistill.distill(config, folder, Console(quiet=True)).rows
    return results["rows"]
