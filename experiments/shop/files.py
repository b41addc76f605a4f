"""Export the models of a study, and compare the files: AUC, what it keeps of the teacher's, bytes and time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.evaluation.comparison import interval, paired
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.run.export_files import slug
from jaxdistill.run.export_run import Options, export
from jaxdistill.run.study import Study, runs

INT8, FLOATS = "onnx(int8='dynamic')", "onnx"


class Pair(NamedTuple):
    """Two arms that differ in one thing: whether the student learns from its teacher.

    arm: the student
    control: the same student on labels alone
    teacher: the teacher whose float file both are compared with
    """

    arm: str
    control: str
    teacher: str


def measured(folder: Path, spec: str) -> dict[str, Any]:
    """Return what was measured of the student's file of a run, which is exported first if it is not yet."""

    def entry() -> dict[str, Any] | None:
        content = seal.read(folder / "results.json", {"rows": list}, required=True)
        found = [x for x in content.get("exports", ()) if x["model"] == "student" and x["name"] == slug(spec)]
        return found[0] if found else None

    if entry() is None:
        try:
            export(folder, ["student"], [spec], Options())
        except ConfigError as error:  # a file that disagrees is set aside, with its numbers
            Console(stderr=True).print(f"{folder}: {error}")
    found = entry()
    if not found or not found["measured"]:
        raise SystemExit(f"{folder}: its file could not be measured; see above.")
    return found


def compare(study: Study, workdir: Path, seeds: int, pairs: Sequence[Pair]) -> str:
    """Export the student of every run, and the teachers; write `files.json`, and return the tables as text.

    Args:
        study: the study, which has been run.
        workdir: its folder.
        seeds: number of runs of each arm.
        pairs: the arms to compare.
    """
    teachers = {name: measured(workdir / "teachers" / name, FLOATS) for name in study.teachers}
    files: dict[str, list[dict[str, Any]]] = {}
    for run in runs(study, workdir, seeds, {}):
        files.setdefault(run.arm, []).append(measured(run.folder, INT8))
    entries = {"teachers": teachers, "files": files}
    seal.write(workdir / "files.json", entries)
    return f"{_files(teachers, files, pairs)}\n\n{_pairs(files, pairs)}\n"


def auc(entry: Mapping[str, Any]) -> float:
    return float(entry["measured"]["auc"])


def kept(entry: Mapping[str, Any], teacher: Mapping[str, Any]) -> float:
    """Return the share of the teacher's AUC above chance that a file keeps, in percent."""
    return 100 * (auc(entry) - 0.5) / (auc(teacher) - 0.5)


def _files(teachers: Mapping[str, Any], files: Mapping[str, Sequence[Mapping[str, Any]]], pairs: Sequence[Pair]) -> str:
    rows = [["file", "AUC", "kept %", "MB", "ms", "same %"]]
    number = lambda entry, key: entry["measured"][key]
    for name, entry in teachers.items():
        size, latency = number(entry, "bytes") / 1e6, number(entry, "latency_ms")["median"]
        rows.append([f"teacher {name}, floats", f"{auc(entry):.4f}", "100", f"{size:.3f}", f"{latency:.4f}", "100"])
    of = {arm: pair.teacher for pair in pairs for arm in (pair.arm, pair.control)}
    for arm, entries in files.items():
        shares = [kept(entry, teachers[of[arm]]) for entry in entries]
        rows.append(
            [
                f"{arm}, 8 bits",
                f"{np.mean([auc(x) for x in entries]):.4f}",
                f"{np.mean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})",
                f"{np.mean([number(x, 'bytes') for x in entries]) / 1e6:.3f}",
                f"{np.mean([number(x, 'latency_ms')['median'] for x in entries]):.4f}",
                f"{100 * np.mean([number(x, 'same') for x in entries]):.2f}",
            ]
        )
    return aligned(rows)


def _pairs(files: Mapping[str, Sequence[Mapping[str, Any]]], pairs: Sequence[Pair]) -> str:
    rows = [["student minus control, AUC of the files", "mean", "95 % interval", "verdict"]]
    for pair in pairs:
        found = paired([auc(x) for x in files[pair.arm]], [auc(x) for x in files[pair.control]])
        low, high = interval(found.differences)
        verdict = "the teacher helps" if low > 0 else "the teacher harms" if high < 0 else "no difference is shown"
        rows.append([pair.arm, f"{found.mean:.4f}", f"{low:.4f} to {high:.4f}", verdict])
    return aligned(rows)
