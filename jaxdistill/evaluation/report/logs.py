"""Read the files of a run: `results.json`, and one `log.jsonl` for each trained model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Line = dict[str, Any]


class Log(NamedTuple):
    """The log of one model: training and evaluation lines, ordered by step."""

    train: list[Line]
    eval: list[Line]


def read_results(workdir: Path) -> dict[str, Any]:
    """Read `results.json`; without the file, return only a title and a summary, for a report with curves."""
    path = workdir / "results.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"title": workdir.resolve().name, "summary": "The run is not finished: this folder has no results.json yet."}


def read_logs(workdir: Path) -> dict[str, Log]:
    """Read all logs, by row name in the table: `teacher big`, `student`, `control`."""
    teachers = sorted(path for path in workdir.glob("teachers/*") if path.is_dir())
    folders = {f"teacher {path.name}": path for path in teachers}
    folders |= {name: workdir / name for name in ("student", "control")}
    return {name: read_log(path / "log.jsonl") for name, path in folders.items() if (path / "log.jsonl").exists()}


def read_log(path: Path) -> Log:
    """Read one log. If a step was logged twice, by a resumed run, the later line is used."""
    lines = {(line.get("kind"), line["step"]): line for line in _lines(path)}
    ordered = [lines[key] for key in sorted(lines, key=lambda key: key[1])]
    return Log(*([line for line in ordered if line.get("kind") == kind] for kind in Log._fields))


def _lines(path: Path) -> Iterator[Line]:
    """Yield the complete lines; a killed run may leave half a line, to which a resumed run may have appended."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def series(lines: list[Line], key: str) -> tuple[list[int], list[float]]:
    """Return `(steps, values)` of a key, over the lines that have it; null becomes NaN, a gap in the curve."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in points], [float("nan") if value is None else float(value) for _, value in points]


def keys_below(lines: list[Line], prefix: str) -> list[str]:
    """Return the names after `prefix/` in the keys of any line, in order of appearance."""
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key.removeprefix(f"{prefix}/") for key in keys if key.startswith(f"{prefix}/")]
