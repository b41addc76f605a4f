"""Compare finished runs: read their results, and write one page about them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.evaluation.comparison import paired_records
from jaxdistill.evaluation.report import compare as page
from jaxdistill.evaluation.report.compare import ComparedRun
from jaxdistill.run.predict import results
from jaxdistill.run.workdir import check_writable


def compare(runs: Sequence[Path], model: str, out: Path) -> str:
    """Write the page `compare.html` about several runs, and return its table as text.

    Args:
        runs: folders of finished runs.
        model: name of the model to compare in their result tables, such as "student".
        out: folder for the page.

    Raises:
        ConfigError: a folder holds no finished run, or its run has no such model; or `out` cannot be written.
        DamageError: the results of a run are damaged.
    """
    model = model.replace("teachers/", "teacher ")  # as `jaxdistill predict` and as the tables name it
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError("RUN", "a run is named twice. Name each once.")
    check_writable(out, "--out")
    contents = [results(run) for run in runs]
    answers = [_answers(run, content, model) for run, content in zip(runs, contents, strict=True)]
    compared = []
    for run, content, found in zip(runs, contents, answers, strict=True):
        rows = {row["name"]: row for row in content["rows"]}
        if model not in rows:
            raise ConfigError("--model", f"the run in {str(run)!r} has no {model!r}. {suggest(model, rows)}")
        pair = paired_records(*pairs)._asdict() if (pairs := _right(found, answers[0])) and run != runs[0] else None
        compared.append(ComparedRun(str(run), rows[model], _flat(content["config"]), pair, content.get("title", "")))
    out.mkdir(parents=True, exist_ok=True)
    file = out / "compare.html"
    seal.write_text(file, page.render(compared, model, out.resolve()))
    return f"{page.text_table(compared)}\nPage: {file}\n"


def _answers(run: Path, content: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """Return a model's predictions for the test records, and which records these are; empty if they are not known."""
    folder = "teachers/" + model.removeprefix("teacher ") if model.startswith("teacher ") else model
    try:
        found = seal.read(run / folder / "result.json", {"row": dict}).get("answers") or {}
    except FileNotFoundError:
        return {}
    data = content["config"]["data"]
    return {**found, "records": (data["name"], data["test"])} if "label" in found else {}


def _right(one: Mapping[str, Any], other: Mapping[str, Any]) -> Any:
    """Return which test records each of two models predicts correctly; None if their records are not the same."""
    if not one or not other or one["records"] != other["records"] or one["label"] != other["label"]:
        return None
    return [np.equal(each["predicted"], each["label"]) for each in (one, other)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return found
