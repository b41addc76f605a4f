"""What a study is: one config, changed along axes, over seeds."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from jaxdistill.core.errors import ConfigError, suggest
from jaxdistill.evaluation.report.logs import read_log
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.config import Config, differ, override
from jaxdistill.run.distill import distill
from jaxdistill.run.workdir import changes

Change = str | Mapping[str, Any]  # a text, as on the command line; or keys, as `differ` takes them
Axis = Sequence[str] | Mapping[str, Change]


class Study(NamedTuple):
    """What is compared.

    name: of its module, as in `python -m experiments.NAME`
    question: that it answers
    base: the config that its arms differ from; teachers that it would train are trained once, for all arms and seeds
    axes: by the path of a key the texts that it takes, as in `{"fusion": ("average()", "entropy()")}`, or labels with
        changes; where all changes are keys, the axis may have any name
    baseline: the arm with which the others are compared
    further: arms beside the product of the axes, by label
    teachers: configs of runs whose students are the teachers of these names: of arms, and of teachers that come later
    cached: whether teachers are asked once, and read by all runs; if arms read logits alone and augment by no chance
    measures: what is told; the first is compared
    """

    name: str
    question: str
    base: Config
    axes: Mapping[str, Axis]
    baseline: str
    further: Mapping[str, Mapping[str, Any]] = {}
    teachers: Mapping[str, Config] = {}
    cached: bool = False
    measures: tuple[Measure, ...] = (ACCURACY,)


class Run(NamedTuple):
    """One student of a study, and where it lies."""

    arm: str
    seed: int
    config: Config
    folder: Path


def expand(study: Study) -> dict[str, Config]:
    """The arms' configs, by label: the product of the axes, and what is beside it.

    Raises:
        ConfigError: a change cannot be made, two arms have one folder, or the baseline is none of them.
    """
    arms = {"": study.base}
    for path, axis in study.axes.items():
        choices = axis if isinstance(axis, Mapping) else {text: text for text in axis}
        arms = {
            f"{arm} | {label}" if arm else label: _changed(config, path, change)
            for arm, config in arms.items()
            for label, change in choices.items()
        }
    arms |= {label: differ(study.base, **change) for label, change in study.further.items()}
    folders = [_folder(arm) for arm in arms]
    if twice := [arm for arm in arms if folders.count(_folder(arm)) > 1]:
        raise ConfigError("axes", f"{', '.join(map(repr, twice))} would share a folder; choose other labels.")
    for arm, config in arms.items():
        for name in [name for name, entry in study.base.teachers.items() if entry.steps and not entry.checkpoint]:
            if name in config.teachers and config.teachers[name] != study.base.teachers[name]:
                cure = f"Give each its own name, or a checkpoint to teachers.{name}"
                raise ConfigError(f"teachers.{name}", f"is trained once for all, and {arm!r} changes it. {cure}.")
    if study.baseline not in arms:
        raise ConfigError("baseline", f"there is no arm {study.baseline!r}. {suggest(study.baseline, arms)}")
    return arms


def runs(study: Study, workdir: Path, seeds: int, checkpoints: Mapping[str, str]) -> list[Run]:
    """All runs, seed by seed, so that a study that was cut is a smaller study.

    Args:
        checkpoints: of the teachers that the arms share, by name.
    """
    logging = {"tensorboard": False, "compilation_cache": str((workdir / "programs").absolute())}  # seeds share them
    found = []
    for seed in range(seeds):
        for arm, config in expand(study).items():
            teachers = _ready(study, config, workdir, checkpoints)
            whole = differ(config, seed=seed, control=False, logging=logging, teachers=teachers)
            found.append(Run(arm, seed, whole, workdir / _folder(arm) / str(seed)))
    return found


def together(study: Study, workdir: Path, checkpoints: Mapping[str, str]) -> Config:
    """All teachers and streams of all arms in one config, which no run has: for what is written once for all."""
    arms = list(expand(study).values())
    teachers = {name: entry for arm in arms for name, entry in _ready(study, arm, workdir, checkpoints).items()}
    streams = {name: entry for arm in arms for name, entry in arm.streams.to_dict().items()}
    return differ(study.base, teachers=teachers, streams=streams)


def _ready(study: Study, config: Config, workdir: Path, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """The teachers of a config as they are before its run: trained, and perhaps asked already."""
    found = taught(config, checkpoints)
    if study.cached:
        found = {n: {**entry, "cache": f"outputs(folder={str(workdir / 'said' / n)!r})"} for n, entry in found.items()}
    return found


def taught(config: Config, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """The teachers of a config, those without a checkpoint from the one of their name."""
    found = {name: entry.to_dict() for name, entry in config.teachers.items()}
    return {n: {**entry, "checkpoint": entry["checkpoint"] or checkpoints.get(n, "")} for n, entry in found.items()}


def finished(config: Config, folder: Path) -> dict[str, Any] | None:
    """What a run has left, with the last line of its student's log, if it ran to the end of this config."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    results = json.loads(file.read_text())
    if results["config"]["steps"] != config.steps or changes(results["config"], config):
        return None
    return {**results, "log": read_log(folder / "student" / "log.jsonl").train[-1]}


def ran(config: Config, folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, which is made, or resumed, if it is not finished."""
    if results := finished(config, folder):
        return results["rows"]
    return distill(config, folder, Console(quiet=True)).rows


def _changed(config: Config, path: str, change: Change) -> Config:
    return override(config, [(path, change)]) if isinstance(change, str) else differ(config, **change)


def _folder(arm: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^\w.=+-]+", "-", arm).strip("-")
