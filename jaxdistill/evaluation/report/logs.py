"""What a run left in its folder: `results.json`, and one `log.jsonl` for each network that was trained."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Line = dict[str, Any]


class Log(NamedTuple):
    """The log of one network: its lines by step, in order."""

    train: list[Line]
    eval: list[Line]


def read_results(workdir: Path) -> dict[str, Any]:
    """The contents of `results.json`; without the file, a page of curves under the folder's name."""
    path = workdir / "results.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"title": workdir.resolve().name, "summary": "Not evaluated: this folder has no results.json yet."}


def read_logs(workdir: Path) -> dict[str, Log]:
    """The logs by the name that their row has in the table: `teacher big`, `student`, `control`."""
    teachers = sorted(path for path in workdir.glob("teachers/*") if path.is_dir())
    folders = {f"teacher {path.name}": path for path in teachers}
    folders |= {name: workdir / name for name in ("student", "control")}
    return {name: read_log(path / "log.jsonl") for name, path in folders.items() if (path / "log.jsonl").exists()}


def read_log(path: Path) -> Log:
    """Reads one log. Of a step that was logged twice the later line counts: a resumed run repeats steps."""
    lines = {(line.get("kind"), line["step"]): line for line in _lines(path)}
    ordered = [lines[key] for key in sorted(lines, key=lambda key: key[1])]
    return Log(*([line for line in ordered if line.get("kind") == kind] for kind in Log._fields))


def _lines(path: Path) -> Iterator[Line]:
    """The lines that are whole; a killed run leaves half a line, and a resumed one may go on right behind it."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def series(lines: list[Line], key: str) -> tuple[list[int], list[float]]:
    """`(steps, values)` of one key, over the lines that have it; null becomes NaN, which a curve shows as a gap."""
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [float("nan") if value is None else float(value) for _, value in found]


def keys_below(lines: list[Line], prefix: str) -> list[str]:
    """The names behind `prefix/` in any line, in order of appearance."""
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key.removeprefix(f"{prefix}/") for key in keys if key.startswith(f"{prefix}/")]
