"""Define a study: one base config, varied along axes, with several seeds for each variant (arm)."""

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError, suggest
from jaxdistill.core.manifest import quality
from jaxdistill.core.notes import note_damage
from jaxdistill.evaluation.report.logs import read_log
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.config import Config, differ, override
from jaxdistill.run.distill import distill
from jaxdistill.run.fill import fill_placeholders
from jaxdistill.run.record_identity import check_inputs
from jaxdistill.run.resolve import check_definitions, resolve
from jaxdistill.run.workdir import check_same_parts, config_differences, is_of_this_run

Change = str | Mapping[str, Any]  # the text of a value, as on the command line; or arguments of `differ`
Axis = Sequence[str] | Mapping[str, Change]


class Study(NamedTuple):
    """A comparison of several variants of a run, called arms.

    name: name of the module in `experiments`, as in `python -m experiments.NAME`
    question: the question that the study answers, shown as title
    base: the config that the arms vary; teachers that this config trains are trained once, for all arms and seeds
    axes: the values of each config key that varies, as in `{"fusion": ("average()", "entropy()")}`. Every combination
        of values is an arm. An axis may also be `{label: change}`, where a change is the text of a value for the key,
        or a mapping of several config keys to values, which ignores the key of the axis
    baseline: label of the arm with which the other arms are compared
    further: additional arms, `{label: {config key: value}}`, with the keys that differ from `base`
    teachers: configs of runs that are executed before the arms, by teacher name. In the arms, and in the runs after it,
        the student of such a run serves as the checkpoint of the teacher of this name
    cached: True if teacher outputs are written to disk once and read by all runs; then the arms must read only logits
        of the teachers, and use no random augmentation
    measures: the columns of the result table; arms are compared by the first
    command: the command that runs the study, without --workdir and --seeds; if empty, `python -m experiments.NAME`
    source: file path of the Python file that defines `base`, and may register parts, or '' if there is none; each run
        keeps a copy of the file
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
    command: tuple[str, ...] = ()
    source: str = ""

    @property
    def command_line(self) -> str:
        """Return the command that runs the study, quoted for a shell, without --workdir and --seeds."""
        return shlex.join(self.command or ("python", "-m", f"experiments.{self.name}"))


class Run(NamedTuple):
    """One run of a study: one arm with one seed.

    arm: label of the arm (variant of the study's base config)
    seed: random seed
    config: complete config of the run
    folder: folder of checkpoints and results
    source: file path of the Python file that defines the study's base config, or '' if there is none
    """

    arm: str
    seed: int
    config: Config
    folder: Path
    source: str = ""


def expand(study: Study) -> dict[str, Config]:
    """Return the configs of all arms (variants of the base config) of a study, by label.

    The arms are every combination of the values on the study's axes, and the study's additional arms.

    Raises:
        ConfigError: a change is invalid, two arms share a folder, an arm changes a teacher that is trained for all
            arms, or the baseline is not an arm.
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
    """Return all runs of a study: every arm (variant) with seed 0, then every arm with seed 1, and so on.

    In this order, a study that is interrupted has results of all arms, with fewer seeds.

    Args:
        study: a base config and its variants (arms).
        workdir: folder of the study.
        seeds: number of runs for each arm, with seeds 0, 1, ...
        checkpoints: checkpoint folders of the teachers that all arms share, by teacher name.
    """
    logging = {"tensorboard": False, "compilation_cache": str((workdir / "programs").absolute())}  # shared by seeds
    all_runs = []
    for seed in range(seeds):
        for arm, config in expand(study).items():
            teachers = _prepared_teachers(study, config, workdir, checkpoints)
            run_config = differ(config, seed=seed, control=False, logging=logging, teachers=teachers)
            all_runs.append(Run(arm, seed, run_config, workdir / _folder(arm) / str(seed), study.source))
    return all_runs


def check_arms(study: Study, data: bool = False) -> None:
    """Check the configs of all arms (variants) and teachers of a study before anything runs.

    Args:
        study: a base config and its variants (arms).
        data: whether to check the data and the models of every config, too.

    Raises:
        ConfigError: a config is wrong.
    """
    configs = (*expand(study).values(), *study.teachers.values())
    for config in configs:  # all arms, before the data of any are prepared
        check_definitions(config, jax.devices())
    for config in configs:
        teachers = {name: entry.to_dict() for name, entry in config.teachers.items()}
        for name in teachers.keys() & study.teachers.keys():  # until they have checkpoints: as if trained in each run
            if not teachers[name]["checkpoint"]:
                teachers[name]["steps"] = study.teachers[name].steps
        resolved = resolve(differ(config, teachers=teachers), jax.devices())
        _ = resolved.stages if data else resolved.definitions


def merged_config(study: Study, workdir: Path, checkpoints: Mapping[str, str]) -> Config:
    """Return one config with the teachers and data streams of all arms (variants), to cache all outputs at once.

    Args:
        study: a base config and its variants (arms).
        workdir: folder of the study, in which the caches are written.
        checkpoints: checkpoint folders of the teachers that all arms share, by teacher name.
    """
    arms = list(expand(study).values())
    teachers = {
        name: entry for arm in arms for name, entry in _prepared_teachers(study, arm, workdir, checkpoints).items()
    }
    streams = {name: entry for arm in arms for name, entry in arm.streams.to_dict().items()}
    return differ(study.base, teachers=teachers, streams=streams)


def _prepared_teachers(study: Study, config: Config, workdir: Path, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """Return the section `teachers` of a config with all checkpoints set, and the caches if the study uses caches."""
    teachers = with_checkpoints(config, checkpoints)
    if study.cached:
        folder = workdir / "said"
        teachers = {n: {**entry, "cache": f"outputs(folder={str(folder / n)!r})"} for n, entry in teachers.items()}
    return teachers


def with_checkpoints(config: Config, checkpoints: Mapping[str, str]) -> dict[str, Any]:
    """Return the section `teachers` of a config, with a checkpoint filled in for each teacher that has none.

    Args:
        config: a complete config.
        checkpoints: checkpoint folders by teacher name; a teacher that is not listed stays without a checkpoint.
    """
    teachers = {name: entry.to_dict() for name, entry in config.teachers.items()}
    return {n: {**entry, "checkpoint": entry["checkpoint"] or checkpoints.get(n, "")} for n, entry in teachers.items()}


def finished_results(config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the results of a finished run; None if the run is not finished, or was made from another config.

    The results are the content of results.json, and under "log" the last training line of the student's log.

    Args:
        config: config of the run.
        folder: folder of the run.
    """
    try:
        results = seal.read(
            folder / "results.json", {"config": dict, "rows": list[dict], "seconds": dict, "provenance": dict}
        )
    except (FileNotFoundError, DamageError) as error:  # damaged results are made again
        note_damage(error)
        return None
    if not is_of_this_run(folder, results):  # `distill` refuses it, with the cure
        return None
    if results["config"]["steps"] != config.steps or config_differences(results["config"], fill_placeholders(config)):
        return None
    line = results.get("log", {}).get("student")
    if not line:  # a run that was resumed after its last step has logged nothing
        line = {}
        with contextlib.suppress(FileNotFoundError, IndexError):
            line = read_log(folder / "student", results.get("run") or "", "student").train[-1]
    return {**results, "log": line}


def check_unchanged(config: Config, folder: Path) -> None:
    """Require that the records, teachers and files of a finished run are unchanged, so that new runs are comparable.

    Raises:
        ConfigError: something has changed.
    """
    resolved = resolve(config, jax.devices())
    check_inputs(folder, resolved.data, resolved.teachers, resolved.config)


def run_or_resume(config: Config, folder: Path, source: str = "") -> list[dict[str, Any]]:
    """Execute a run, or resume it if it was interrupted, and return its result table, one dict per model.

    If the run is already finished, the table is read from its folder.

    Args:
        config: config of the run.
        folder: folder of the run.
        source: file path of the Python file that defines the config, and may register parts, or '' if there is none.
    """
    if results := finished_results(config, folder):
        check_same_parts(folder, source)
        check_unchanged(config, folder)
        return results["rows"]
    return distill(config, folder, Console(quiet=True), source).rows


def quality_text(row: Mapping[str, Any]) -> str:
    """Return the quality of a model as text, such as "91.20 %": its accuracy, R@5, or its match with the teacher.

    Args:
        row: the model's row of the result table.
    """
    value = quality(row)
    return "not measured" if value is None else f"{100 * value:.2f} %"


def _changed(config: Config, path: str, change: Change) -> Config:
    return override(config, [(path, change)]) if isinstance(change, str) else differ(config, **change)


def _folder(arm: str) -> str:
    """Turn the label of an arm into a folder name."""
    return re.sub(r"[^\w.=+-]+", "-", arm).strip("-")
