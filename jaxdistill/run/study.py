"""Define a study: one base config, varied along axes, with several seeds for each variant."""

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
from jaxdistill.run.workdir import config_differences

Change = str | Mapping[str, Any]  # the text of a value, as on the command line; or arguments of `differ`
Axis = Sequence[str] | Mapping[str, Change]


class Study(NamedTuple):
    """A comparison of several variants of a run, the arms.

    name: name of the module, as in `python -m experiments.NAME`
    question: the question that the study answers, shown as title
    base: the config that the arms vary; teachers that it trains are trained once, for all arms and seeds
    axes: for each config path its values, as in `{"fusion": ("average()", "entropy()")}`, or a mapping from labels to
        changes. An axis whose changes are all mappings may have any name. Every combination of values is an arm
    baseline: label of the arm with which the others are compared
    further: additional arms, by label, as arguments of `differ`
    teachers: configs of runs whose students are teachers, by teacher name; later runs may use earlier ones as teachers
    cached: True: teacher outputs are cached once and read by all runs; needs arms that read only logits of the
        teachers, without random augmentation
    measures: the columns of the result table; arms are compared by the first
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
    """One run of a study: an arm, a seed, and the folder of the results."""

    arm: str
    seed: int
    config: Config
    folder: Path


def expand(study: Study) -> dict[str, Config]:
    """Return the configs of all arms, by label: every combination of the axes, and the additional arms.

    Raises:
        ConfigError: a change is invalid, two arms share a folder, or the baseline is not an arm.
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
    if clashing := [arm for arm in arms if folders.count(_folder(arm)) > 1]:
        raise ConfigError("axes", f"{', '.join(map(repr, clashing))} would share a folder; choose other labels.")
    for arm, config in arms.items():
        for name in [name for name, entry in study.base.teachers.items() if entry.steps and not entry.checkpoint]:
            if name in config.teachers and config.teachers[name] != study.base.teachers[name]:
                cure = f"Give each variant its own name, or set teachers.{name}.checkpoint"
                raise ConfigError(f"teachers.{name}", f"is trained once for all arms, but {arm!r} changes it. {cure}.")
    if study.baseline not in arms:
        raise ConfigError("baseline", f"there is no arm {study.baseline!r}. {suggest(study.baseline, arms)}")
    return arms


def runs(study: Study, workdir: Path, seeds: int, checkpoints: Mapping[str, str]) -> list[Run]:
    """Return all runs of a study, seed by seed, so that an interrupted study has all arms but fewer seeds.

    Args:
        study: the study.
        workdir: folder of the study.
        seeds: number of seeds for each arm.
        checkpoints: checkpoints of the teachers that the arms share, by name.
    """
    logging = {"tensorboard": False, "compilation_cache": str((workdir / "programs").absolute())}  # shared by seeds
    all_runs = []
    for seed in range(seeds):
        for arm, config in expand(study).items():
            teachers = _prepared_teachers(study, config, workdir, checkpoints)
            run_config = differ(config, seed=seed, control=False, logging=logging, teachers=teachers)
            all_runs.append(Run(arm, seed, run_config, workdir / _folder(arm) / str(seed)))
    return all_runs


def merged_config(study: Study, workdir: Path, checkpoints: Mapping[str, str]) -> Config:
    """Return one config with the teachers and streams of all arms, to cache the outputs of all teachers at once."""
    arms = list(expand(study).values())
    teachers = {
        name: entry for arm in arms for name, entry in _prepared_teachers(study, arm, workdir, checkpoints).items()
    }
    streams = {name: entry for arm in arms for name, entry in arm.streams.to_dict().items()}
    return differ(study.base, teachers=teachers, streams=streams)


def _prepared_teachers(study: Study, config: Config, workdir: Path, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """Return the teachers of a config with their checkpoints, and with their caches if the study uses caches."""
    teachers = with_checkpoints(config, checkpoints)
    if study.cached:
        folder = workdir / "said"
        teachers = {n: {**entry, "cache": f"outputs(folder={str(folder / n)!r})"} for n, entry in teachers.items()}
    return teachers


def with_checkpoints(config: Config, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """Return the teachers of a config; those without a checkpoint get the shared checkpoint of their name."""
    teachers = {name: entry.to_dict() for name, entry in config.teachers.items()}
    return {n: {**entry, "checkpoint": entry["checkpoint"] or checkpoints.get(n, "")} for n, entry in teachers.items()}


def finished_results(config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the results of a run and the last line of its student's log; None: unfinished, or another config."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    results = json.loads(file.read_text())
    if results["config"]["steps"] != config.steps or config_differences(results["config"], config):
        return None
    return {**results, "log": read_log(folder / "student" / "log.jsonl").train[-1]}


def run_or_resume(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Return the result rows of a run; start or resume the run if it is not finished."""
    if results := finished_results(config, folder):
        return results["rows"]
    return distill(config, folder, Console(quiet=True)).rows


def _changed(config: Config, path: str, change: Change) -> Config:
    return override(config, [(path, change)]) if isinstance(change, str) else differ(config, **change)


def _folder(arm: str) -> str:
    """Turn a label into a folder name."""
    return re.sub(r"[^\w.=+-]+", "-", arm).strip("-")
