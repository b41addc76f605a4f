"""Read and write result.json: the results of one trained model, with the model and the run that they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError
from jaxdistill.core.manifest import RESULT
from jaxdistill.evaluation.report.logs import LOG_LINES, count_lines

TYPES: seal.JsonTypes = {"row": dict, "reliability": dict, "seconds": (int, float), "compiled": dict, "step": int}


def are_one_run(*names: str | None) -> bool:
    """Return True if all given names of runs are equal; empty names, from files of an earlier version, are ignored."""
    return len({name for name in names if name}) < 2


def write(folder: Path, name: str, run: str, outcome: Mapping[str, Any], steps: int) -> None:
    """Write the results of a trained model to result.json in the folder of the model.

    Args:
        folder: folder of the model.
        name: name of the model in the result table, such as "student".
        run: random name of the run.
        outcome: the results, from `outcomes.outcome_of`.
        steps: number of training steps.
    """
    about = {"step": steps, "run": run, LOG_LINES: count_lines(folder, run, name)}
    seal.write(folder / RESULT, {**outcome, **about})


def read(folder: Path, name: str, run: str, types: seal.JsonTypes = TYPES, required: bool = True) -> dict[str, Any]:
    """Read the results of a trained model from its result.json, as a dict without the name of the run.

    Args:
        folder: folder of the model.
        name: name of the model in the result table.
        run: random name of the run, or '' if it is not known.
        types: keys that the file must have, with their types.
        required: whether to refuse a file without a seal (checksum), such as that of an earlier version.

    Raises:
        FileNotFoundError: there is no result.json.
        DamageError: the file is damaged, or belongs to another model or run.
    """
    outcome = seal.read(folder / RESULT, types, required)
    if outcome["row"].get("name") != name or not are_one_run(outcome.pop("run", ""), run):
        raise DamageError(f"{folder / RESULT} is of another run or model")
    return outcome
