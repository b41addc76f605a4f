"""Distil the finalists of a search, export and measure them beside their teacher, and choose one within the budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError
from jaxdistill.evaluation.report import search as page
from jaxdistill.evaluation.report.search import Point
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import Config, differ
from jaxdistill.run.exported_files import slug
from jaxdistill.run.exporting import Options, export
from jaxdistill.run.predict import results
from jaxdistill.run.search import Candidate, Size
from jaxdistill.run.study import Run, Study, runs

AWARE, AFTERWARDS, ALONE = "distilled", "distilled, rounded afterwards", "alone"
RUNS = "runs"  # folder of the study in that of the search


def study_of(base: Config, chosen: Sequence[Candidate], command: Sequence[str]) -> Study:
    """Return the study that trains the finalists, each with its controls.

    Args:
        base: config of the search.
        chosen: the finalists.
        command: the command of the search.
    """
    arms: dict[str, dict[str, Any]] = {}
    for candidate in chosen:
        student = candidate.config.student.to_dict()
        arms[f"{candidate.label} | {AWARE}"] = {"student": student}
        if student["quantized"]:
            arms[f"{candidate.label} | {AFTERWARDS}"] = {"student": {**student, "quantized": ""}}
        if base.teachers:
            arms[f"{candidate.label} | {ALONE}"] = {"student": student, "objective": base.task.to_dict()}
    question = "Which student is best within the budget?"
    quiet = differ(base, title="Search", exports={}, control=False, logging={"tensorboard": False})
    return Study("search", question, quiet, {"arm": arms}, next(iter(arms)), command=tuple(command))


def distil(study: Study, workdir: Path, seeds: int, console: Console) -> list[Run]:
    """Train all arms of the study, and return their runs; finished ones are not repeated."""
    sweep.run_study(study, workdir / RUNS, seeds, console)
    checkpoints = {
        name: str(workdir / RUNS / "taught" / "teachers" / name)
        for name, entry in study.base.teachers.items()
        if entry.steps and not entry.checkpoint
    }
    return runs(study, workdir / RUNS, seeds, checkpoints)


def measure_files(
    study: Study, all_runs: Sequence[Run], chosen: Sequence[Candidate], device: str, workdir: Path, console: Console
) -> list[Point]:
    """Export every run, and the teachers that were trained, and return what was measured of the files.

    Args:
        study: the study.
        all_runs: its runs.
        chosen: the finalists.
        device: spec string of the device.
        workdir: folder of the search.
        console: where problems are printed.
    """
    formats = {candidate.label: candidate.format for candidate in chosen}
    entries: dict[str, list[Mapping[str, Any]]] = {}
    for run in all_runs:
        to = formats[run.arm.rpartition(" | ")[0]]
        entries.setdefault(run.arm, []).append(_entry(run.folder, "student", to, device, console))
    points = [_point(arm, found) for arm, found in entries.items()]
    whole = "onnx" if any("onnx" in to for to in formats.values()) else "litert"
    for name, teacher in study.base.teachers.items():
        if teacher.steps and not teacher.checkpoint:
            floats = _entry(workdir / RUNS / "taught", f"teachers/{name}", whole, "", console)
            points.append(_point(f"teacher {name} | floats", [floats]))
    return points


def _entry(folder: Path, model: str, to: str, device: str, console: Console) -> Mapping[str, Any]:
    """Return what was measured of a file of a run, which is exported first if it is not yet."""

    def found() -> Mapping[str, Any]:
        entries = results(folder).get("exports", ())
        return next((each for each in entries if each["model"] == model and each["name"] == slug(to)), {})

    if not found():
        try:
            export(folder, [model], [to], Options(device=device))
        except ConfigError as error:  # a file that disagrees is set aside, with its numbers
            console.print(f"note: {error}", highlight=False, soft_wrap=True)
    return found()


def _point(arm: str, entries: Sequence[Mapping[str, Any]]) -> Point:
    measured = [entry["measured"] for entry in entries]
    estimates = [(entry.get("device") or {}).get("milliseconds") for entry in entries]
    times = [each or found["latency_ms"]["median"] for each, found in zip(estimates, measured, strict=True)]
    label, _, kind = arm.rpartition(" | ")
    accuracies = [found["accuracy"] for found in measured]
    return Point(
        label,
        kind,
        tuple(float("nan") if each is None else each for each in accuracies),
        float(np.median(times)),
        float(np.mean([found["bytes"] for found in measured]) / 1e6),
        "; ".join(entry["problem"] for entry in entries if entry["problem"]),
    )


def choose_point(points: Sequence[Point], sizes: Sequence[Size], budget: Mapping[str, float]) -> Point:
    """Return the distilled student with the best mean accuracy, of equal ones the fastest.

    A file that was set aside is not chosen. Time and bytes are those of the table, where all candidates were measured
    in turns.

    Raises:
        ConfigError: no file is right.
    """
    inside = {size.label for size in sizes if size.excess(budget) <= 1}
    right = [each for each in points if each.kind in (AWARE, AFTERWARDS) and not each.problem and each.label in inside]
    if not right:
        raise ConfigError("--budget", "no finalist's file gives the answers of its model; see the notes above.")
    return max(right, key=lambda each: (each.mean, -each.latency_ms))


def finish(
    workdir: Path,
    config: Config,
    chosen: Point,
    candidate: Candidate,
    points: Sequence[Point],
    sizes: Sequence[Size],
    budget: Mapping[str, float],
    device: str,
    command: str,
) -> str:
    """Write the page and the config of the chosen student, and return a summary.

    Args:
        workdir: folder of the search.
        config: its base config.
        chosen: what was measured of the chosen student.
        candidate: the chosen candidate.
        points: all files that were measured.
        sizes: the table of candidates.
        budget: the limits.
        device: spec string of the device.
        command: the command of the search.
    """
    quantized = candidate.config.student.quantized if chosen.kind == AWARE else ""
    student = {**candidate.config.student.to_dict(), "quantized": quantized}
    exports = {"student": {"to": candidate.format, "device": device}}
    final = differ(config, student=student, exports=exports)
    seal.write(workdir / "chosen.json", {"config": final.to_dict()})
    rows = [{**size._asdict(), "inside": size.excess(budget) <= 1} for size in sizes]
    text = page.sentence(chosen, points, budget, device)
    seal.write_text(workdir / "search.html", page.render(text, points, chosen, rows, device, command))
    return f"{page.text_table(points)}\n{text}\nPage: {workdir / 'search.html'}\nConfig: {workdir / 'chosen.json'}\n"
