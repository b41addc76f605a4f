"""A run of a study is made once: what is finished is read, and what was cut goes on."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

import jaxdistill
from jaxdistill.evaluation.report.logs import read_log
from jaxdistill.run.workdir import changes


def finished(config: ConfigDict, folder: Path) -> dict[str, Any] | None:
    """What a run has left, with the last line of its student's log, if it ran to the end of this config."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    results = json.loads(file.read_text())
    if results["config"]["steps"] != config.steps or changes(results["config"], config):
        return None
    return {**results, "log": read_log(folder / "student" / "log.jsonl").train[-1]}


def ran(config: ConfigDict, folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, which is made, or resumed, if it is not finished."""
    if results := finished(config, folder):
        return results["rows"]
    return jaxdistill.distill(config, folder, Console(quiet=True)).rows
