"""Distil the finalists of a search, export and measure them beside their teacher, and choose one within the budget."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.core.notes import note_damage
from jaxdistill.evaluation.report import search as page
from jaxdistill.evaluation.report.search import ALONE, DISTILLED, FLOATS, ROUNDED, Point
from jaxdistill.export.choice import choose_device
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import Config, differ
from jaxdistill.run.export_files import EXPORTS, slug
from jaxdistill.run.export_run import Options, export
from jaxdistill.run.predict import results
from jaxdistill.run.search import Candidate, Size
from jaxdistill.run.study import Run, Study, expand, runs

RUNS = "runs"  # folder of the study in that of the search


def study_of(base: Config, chosen: Sequence[Candidate], command: Sequence[str], source: str) -> Study:
    """Return the study (a comparison of runs) that trains the finalists of a search, each with its controls.

    The controls of a finalist are the same student trained in floats, if it is trained for 8 bits, and the same student
    trained without a teacher.

    Args:
        base: config of the search.
        chosen: the finalists.
        command: the command of the search, as words of the command line.
        source: file path of the Python file that defines the config, or '' if there is none.
    """
    arms: dict[str, dict[str, Any]] = {}
    for candidate in chosen:
        student = candidate.config.student.to_dict()
        arms[f"{candidate.label} | {DISTILLED}"] = {"student": student}
        if student["quantized"]:
            arms[f"{candidate.label} | {ROUNDED}"] = {"student": {**student, "quantized": ""}}
        if base.teachers and base.control:
            arms[f"{candidate.label} | {ALONE}"] = {"student": student, "objective": base.task.to_dict()}
    question = "Which student is best within the budget?"
    quiet = differ(base, title="Search", exports={}, control=False, logging={"tensorboard": False})
    return Study("search", question, quiet, {"arm": arms}, next(iter(arms)), command=tuple(command), source=source)


def distil(study: Study, workdir: Path, seeds: int, console: Console) -> list[Run]:
    """Train all arms (variants) of a study, and return its runs; runs that are already finished are not repeated."""
    forget_other_arms(study, workdir / RUNS)
    sweep.run_study(study, workdir / RUNS, seeds, console, shows_table=False)
    checkpoints = sweep.train_teachers(study, workdir / RUNS, Console(quiet=True))  # they are trained
    return runs(study, workdir / RUNS, seeds, checkpoints)


def forget_other_arms(study: Study, folder: Path) -> None:
    """Delete the summary `study.json` of an earlier study if it has arms (finalists) that the new study lacks.

    This happens after a search with another budget. The runs of these arms stay, and can be used again.
    """
    with contextlib.suppress(FileNotFoundError, DamageError):
        if set(seal.read(folder / "study.json", {"runs": dict})["runs"]) - set(expand(study)):
            (folder / "study.json").unlink()


def measure_files(
    study: Study, all_runs: Sequence[Run], chosen: Sequence[Candidate], device: str, workdir: Path, console: Console
) -> list[Point]:
    """Export the student of every run and the teachers that were trained, and return the measurements of the files.

    Return a list with one `Point` (accuracy, latency and bytes) for each arm, over its seeds, and for each teacher.

    Args:
        study: the study that has trained the finalists.
        all_runs: all runs of the study.
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
    points = [_point(arm, of_arm) for arm, of_arm in entries.items()]
    whole = "onnx" if any("onnx" in to for to in formats.values()) else "litert"
    for name, teacher in study.base.teachers.items():
        if teacher.steps and not teacher.checkpoint:
            chosen_device = choose_device(device, "--device")
            of_teacher = "" if chosen_device.inspect else device  # an NPU cannot run floats
            floats = _entry(workdir / RUNS / "taught", f"teachers/{name}", whole, of_teacher, console)
            point = _point(f"teacher {name} | {FLOATS}", [floats])
            points.append(point._replace(latency_ms=float("nan")) if chosen_device.inspect else point)
    return points


def _entry(folder: Path, model: str, to: str, device: str, console: Console) -> Mapping[str, Any]:
    """Return the measurements of a run's exported file, as a dict; the model is exported first if there are none."""

    def entry_in_results() -> Mapping[str, Any]:
        wanted = {"model": model, "name": slug(to), "target": device}
        entry: Mapping[str, Any] = next(
            (each for each in results(folder).get("exports", ()) if wanted.items() <= each.items()), {}
        )
        try:
            if entry and not entry["problem"]:
                seal.check_folder(folder / model / EXPORTS / slug(to))
        except (FileNotFoundError, DamageError) as error:  # it is made again
            note_damage(error)
            return {}
        return entry

    if not entry_in_results():
        try:
            export(folder, [model], [to], Options(device=device))
        except ConfigError as error:  # a file that disagrees is set aside, with its numbers
            console.print(f"note: {error}", highlight=False, soft_wrap=True)
    return entry_in_results()


def _point(arm: str, entries: Sequence[Mapping[str, Any]]) -> Point:
    label, _, kind = arm.rpartition(" | ")
    if not all(entry.get("measured") for entry in entries):
        problem = next((entry["problem"] for entry in entries if entry.get("problem")), "a file was not measured")
        return Point(label, kind, (), float("nan"), float("nan"), problem)
    measured = [entry["measured"] for entry in entries]
    estimates = [(entry.get("device") or {}).get("milliseconds") for entry in entries]
    times = [each or one["latency_ms"]["median"] for each, one in zip(estimates, measured, strict=True)]
    return Point(
        label,
        kind,
        tuple(one["accuracy"] for one in measured),
        float(np.median(times)),
        float(np.mean([one["bytes"] for one in measured]) / 1e6),
        "; ".join(entry["problem"] for entry in entries if entry["problem"]),
        (min(one["latency_ms"]["low"] for one in measured), max(one["latency_ms"]["high"] for one in measured)),
        _coverage(entries[0].get("device") or {}),
    )


def _coverage(device: Mapping[str, Any]) -> str:
    """Return a text such as "5 of 7 operations" for those that a device runs, or '' if it runs all, or is unknown."""
    if "operations" not in device or device["on_device"] == device["operations"]:
        return ""
    return f"{device['on_device']} of {device['operations']} operations"


def choose_point(points: Sequence[Point], budget: Mapping[str, float]) -> Point:
    """Choose the exported file of a distilled student with the best mean accuracy over seeds.

    Between equal accuracies, a student that was trained for its number of bits is preferred to one that was rounded
    afterwards, and then the smaller file. A file with a problem, such as wrong outputs, is never chosen. Files that
    turn out to exceed the budget are chosen only if all do.

    Args:
        points: measurements of the files of all finalists.
        budget: limits by name, see `UNITS`.

    Raises:
        ConfigError: every file of a distilled student has a problem.
    """
    right = [each for each in points if each.kind in (DISTILLED, ROUNDED) and not each.problem]
    if not right:
        raise ConfigError("--budget", "no finalist's file gives the answers of its model; see the notes above.")
    inside = [each for each in right if each.is_within(budget)]
    return max(inside or right, key=lambda each: (each.mean, each.kind == DISTILLED, -each.megabytes))


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
    file_of_chosen: Path,
) -> str:
    """Write the page of the search and the config of the chosen student, and return a summary as text.

    The page is search.html, and the config chosen.json.

    Args:
        workdir: folder of the search.
        config: base config of the search.
        chosen: accuracy, latency and bytes of the chosen student's file.
        candidate: the chosen candidate.
        points: measurements of the files of all finalists and teachers.
        sizes: measurements of all untrained candidates.
        budget: limits by name, see `UNITS`.
        device: spec string of the device.
        command: the command of the search.
        file_of_chosen: folder of the chosen student's file.
    """
    quantized = candidate.config.student.quantized if chosen.kind == DISTILLED else ""
    student = {**candidate.config.student.to_dict(), "quantized": quantized}
    exports = {"student": {"to": candidate.format, "device": device}}
    final = differ(config, student=student, exports=exports)
    seal.write(workdir / "chosen.json", {"config": final.to_dict()})
    rows = [{**size._asdict(), "inside": size.excess(budget) <= 1} for size in sizes]
    text = page.sentence(chosen, points, budget, device, choose_device(device, "--device").has_time)
    seal.write_text(workdir / "search.html", page.render(text, points, chosen, rows, device, command))
    places = {"Page": "search.html", "Config": "chosen.json"}
    lines = [f"{name}: {workdir / file}" for name, file in places.items()]
    return "\n".join([page.text_table(points), text, *lines, f"File: {file_of_chosen}", ""])
