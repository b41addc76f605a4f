"""Read the files of a run: `results.json`, and the `log.jsonl` of each trained model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.core import seal
from jaxdistill.core.errors import DamageError
from jaxdistill.core.notes import note
from jaxdistill.evaluation.report.table import FLOATS

Line = dict[str, Any]
FILE, LOG_LINES = "log.jsonl", "log_lines"  # log of a model; key of result.json with its number of lines


class Log(NamedTuple):
    """The lines of one model's training log, each a dictionary.

    train: lines about training steps, in order of step
    eval: lines about evaluations, in order of step
    """

    train: list[Line]
    eval: list[Line]


def read_results(workdir: Path) -> dict[str, Any]:
    """Read the `results.json` of a run.

    An unfinished run has no such file. Then only a title and a summary are returned, which are enough for a report with
    training curves.

    Args:
        workdir: the folder of the run.
    """
    try:
        return seal.read(workdir / "results.json", {"rows": list[dict]})
    except FileNotFoundError:
        pass
    return {"title": workdir.resolve().name, "summary": "The run is not finished: this folder has no results.json yet."}


def read_logs(workdir: Path) -> dict[str, Log]:
    """Read the logs of all models that a run trained, by model name, such as `teacher big`, `student` or `control`.

    The control is the same student trained without a teacher.

    Args:
        workdir: the folder of the run.
    """
    teachers = sorted(path for path in workdir.glob("teachers/*") if path.is_dir())
    folders = {f"teacher {path.name}": path for path in teachers}
    folders |= {"student": workdir / "student", FLOATS: workdir / "floats", "control": workdir / "control"}
    run = _run_name(workdir)
    return {name: read_log(path, run, name) for name, path in folders.items() if (path / FILE).exists()}


def read_log(folder: Path, run: str = "", name: str = "") -> Log:
    """Read the training log of one model. If a resumed run logged the same step twice, the later line is used.

    If the training has ended and lines of its log are missing, a note says so.

    Args:
        folder: folder of the model, with its file `log.jsonl`.
        run: random name of the run.
        name: name of the model, such as "student".
    """
    every = list(_lines(folder / FILE, log_owner(run, name)))
    with contextlib.suppress(FileNotFoundError, DamageError):
        wanted = seal.read(folder / "result.json", {}).get(LOG_LINES)
        if isinstance(wanted, int) and len(every) < wanted:
            note(f"{folder / FILE} has {len(every)} lines that can be read, and had {wanted}: its curves have gaps")
    lines = {(line.get("kind"), line["step"]): line for line in every}
    ordered = [lines[key] for key in sorted(lines, key=lambda key: key[1])]
    return Log(*([line for line in ordered if line.get("kind") == kind] for kind in Log._fields))


def log_owner(run: str, name: str) -> str:
    """Return the text that binds the checksums of a log's lines to a run and a model: `owner` of `seal.sealed_line`.

    It is empty if the run has no name, as in earlier versions.
    """
    return f"{run} {name} " if run else ""


def count_lines(folder: Path, run: str, name: str) -> int:
    """Return the number of lines that can be read in the log of a model; see `read_log`."""
    return sum(1 for _ in _lines(folder / FILE, log_owner(run, name)))


def _run_name(workdir: Path) -> str:
    """Return the random name of a run, or an empty text if it has none or its files are missing or damaged."""
    for file in ("config.json", "results.json"):
        with contextlib.suppress(FileNotFoundError, DamageError):
            if name := seal.read(workdir / file, {}).get("run"):
                return str(name)
    return ""


def _lines(path: Path, owner: str) -> Iterator[Line]:
    """Yield the intact lines of a log, each as a dict.

    A line that has changed since it was written is left out, and named in a note. Half a line, which a killed run may
    leave and a resumed run may append to, is left out without a note.
    """
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            line = seal.open_line(text, owner)
        except DamageError:
            note(f"{path}, line {number}, has changed since it was written, or is of another model; it is left out")
            continue
        except ValueError:
            continue
        if isinstance(line.get("step"), int) and isinstance(line.get("kind"), str | None):
            yield line


def series(lines: list[Line], key: str) -> tuple[list[int], list[float]]:
    """Return `(steps, values)` of one key of a log, from all lines that have the key; a value of None becomes NaN.

    Args:
        lines: lines of a log.
        key: key of the values, such as "accuracy" or "terms/kd".
    """
    points = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in points], [float("nan") if value is None else float(value) for _, value in points]


def keys_below(lines: list[Line], prefix: str) -> list[str]:
    """Return the log keys that begin with `prefix/`, without this prefix, in order of appearance, each once.

    Args:
        lines: lines of a log.
        prefix: beginning of the keys; for example, "terms" gives "kd" for the key "terms/kd".
    """
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key.removeprefix(f"{prefix}/") for key in keys if key.startswith(f"{prefix}/")]
