"""Compare finished runs: read their results, and write one page about them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError, suggest
from jaxdistill.evaluation.comparison import paired_answers
from jaxdistill.evaluation.report import compare as page
from jaxdistill.evaluation.report.compare import ComparedRun
from jaxdistill.evaluation.report.page import flat
from jaxdistill.run import result_file
from jaxdistill.run.output_checks import check_writable
from jaxdistill.run.predict import results


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
    model = model.replace("teachers/", "teacher ")  # the name in tables, for the name that `jaxdistill predict` takes
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError("RUN", "a run is named twice. Name each once.")
    check_writable(out, "--out")
    contents = [results(run) for run in runs]
    answers = [_answers(run, content, model) for run, content in zip(runs, contents, strict=True)]
    compared = []
    for run, name, content, answers_of_run in zip(runs, _names(runs), contents, answers, strict=True):
        rows = {row["name"]: row for row in content["rows"]}
        if model not in rows:
            raise ConfigError("--model", f"the run in {str(run)!r} has no {model!r}. {suggest(model, rows)}")
        pair = _pair(answers_of_run, answers[0]) if run != runs[0] else None
        title, config = content.get("title", ""), flat(content["config"])
        compared.append(ComparedRun(str(run), name, rows[model], config, pair, title))
    file = out / "compare.html"
    try:
        out.mkdir(parents=True, exist_ok=True)
        seal.write_text(file, page.render(compared, model, out.resolve()))
    except FileNotFoundError:  # a file system of the kernel, such as /proc, in which nobody makes a folder
        raise ConfigError("--out", f"{str(out)!r} cannot be made there; choose another folder.") from None
    return f"{page.text_table(compared)}\nPage: {file}\n"


def _answers(run: Path, content: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """Return a model's predictions and labels for the test records, as a dict by name.

    The entry "records" says which test records these are. Return an empty dict if there are no predictions.
    """
    folder = "teachers/" + model.removeprefix("teacher ") if model.startswith("teacher ") else model
    try:
        result = result_file.read(run / folder, model, content.get("run") or "", {"row": dict}, required=False)
    except FileNotFoundError:
        return {}
    except DamageError as error:
        raise DamageError(f"{error}. Delete it, and repeat the command of the run, which writes it again.") from None
    arrays = result.get("answers") or {}
    data = content["config"]["data"]
    records = content.get("test_records") or data["name"]
    return {**arrays, "records": (records, data["test"])} if "label" in arrays else {}


def _pair(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compare the predictions of two models record by record, and return the fields of `PairedRecords` as a dict.

    Return None if the models may have been evaluated on different test records.
    """
    pair = paired_answers(one, other) if one and other and one["records"] == other["records"] else None
    return pair._asdict() if pair else None


def _names(runs: Sequence[Path]) -> list[str]:
    """Return a name for each run: the end of its folder path, just long enough that all names are different."""
    parts = [run.resolve().parts for run in runs]
    counts = range(1, max(map(len, parts)) + 1)
    tried = (["/".join(part[-count:]) for part in parts] for count in counts)
    return next(names for names in tried if len(set(names)) == len(names))
