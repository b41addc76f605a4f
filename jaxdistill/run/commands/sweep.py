"""Runs a study. What is finished is not run again, what was cut goes on, and a table, a figure and a page are left.

A study is a value (`run/study.py`), and `python -m experiments.NAME` gives it to `main`. Without a module:

    jaxdistill sweep --config configs/methods.py:kd --workdir runs/temperatures --seeds 3 \
        --axis objective.kd.term "kd(temperature=1.0)" "kd(temperature=4.0)" "kd(temperature=8.0)"

The first arm is the baseline; a further --axis multiplies the runs; --config.steps=600 and the like change all of them.
`--slurm` prints a script that runs the same as an array of jobs.
"""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxdistill.core.checkpoint import CheckpointError, write_json
from jaxdistill.core.errors import ConfigError
from jaxdistill.evaluation.report import study as pages
from jaxdistill.evaluation.report.formats import duration
from jaxdistill.run.commands import cache
from jaxdistill.run.config import Config, changes, differ, override
from jaxdistill.run.config_files import load
from jaxdistill.run.log import NonFiniteError
from jaxdistill.run.preemption import Stopped
from jaxdistill.run.resolve import resolve
from jaxdistill.run.study import Run, Study, expand, finished, ran, runs, taught, together
from jaxdistill.run.workdir import held


def teach(study: Study, workdir: Path, console: Console) -> dict[str, str]:
    """Trains the teachers that arms share, and asks them, each once; their checkpoints by name."""
    found: dict[str, str] = {}
    for name, config in study.teachers.items():
        ready = differ(config, teachers=taught(config, found))
        (row,) = (row for row in ran(ready, workdir / "teachers" / name) if row["name"] == "student")
        console.print(f"teacher {name}: {100 * row['accuracy']:.2f} %")
        found[name] = str(workdir / "teachers" / name)
    own = {name for name, entry in study.base.teachers.items() if entry.steps and not entry.checkpoint}
    if own:  # as a run of the base would train them, beside one step of a student
        for row in ran(differ(study.base, steps=1, control=False), workdir / "taught"):
            if row["name"].removeprefix("teacher ") in own:
                console.print(f"{row['name']}: {100 * row['accuracy']:.2f} %")
    found |= {name: str(workdir / "taught" / "teachers" / name) for name in own}
    if study.cached:
        cache.write(together(study, workdir, found), console)
    return found


def learn(run: Run, console: Console) -> None:
    """One run; of one whose loss is not finite it is said, and the study goes on without it."""
    try:
        rows = ran(run.config, run.folder)
        (accuracy,) = (100 * row["accuracy"] for row in rows if row["name"] == "student")
        console.print(f"{run.arm}, seed {run.seed}: {accuracy:.2f} %", highlight=False)
    except NonFiniteError as error:
        console.print(f"{run.arm}, seed {run.seed}: left out, {error}")


def work(left: Sequence[Run], console: Console) -> None:
    """Makes these runs one after the other, and says how far it is and how long it takes still."""
    began = time.perf_counter()
    for done, run in enumerate(left, 1):
        learn(run, console)
        each = (time.perf_counter() - began) / done
        console.print(f"{done} of {len(left)}; about {duration(each * (len(left) - done))} to go")


def _check(study: Study) -> None:
    for config in (*expand(study).values(), *study.teachers.values()):
        _ = resolve(config, jax.devices()).planned


def conduct(study: Study, workdir: Path, seeds: int, console: Console) -> list[pages.Line]:
    """Runs what is missing, says how far it is, and leaves `study.json`, table, figure and page; the table's lines."""
    _check(study)
    with held(workdir):
        _same(study, workdir)
        every = runs(study, workdir, seeds, teach(study, workdir, console))
        left = [run for run in every if not finished(run.config, run.folder)]
        console.print(f"{len(every) - len(left)} of {len(every)} runs were finished before")
        try:
            work(left, console)
        finally:  # of what was cut, `jaxdistill.evaluation.report.study` shows what is there
            write_json(workdir / "study.json", told(study, every))
    lines = pages.write(workdir)
    console.print(pages.markdown(pages.read(workdir), lines), markup=False, highlight=False, soft_wrap=True)
    console.print(f"The page: {workdir / 'study.html'}")
    return lines


def _same(study: Study, workdir: Path) -> None:
    """A folder holds one study; arms may come to it."""
    if (workdir / "study.json").is_file():
        gone = sorted(set(pages.read(workdir)["runs"]) - set(expand(study)))
        if gone:
            why = f"{str(workdir)!r} holds a study with the arm {gone[0]!r}, which this one has not"
            raise ConfigError("--workdir", f"{why}. Choose another folder, or delete its study.json.")


def told(study: Study, every: Sequence[Run]) -> dict[str, Any]:
    """What study.json holds: of every finished run what is measured, and where the numbers come from."""
    found: dict[str, dict[int, dict[str, float]]] = {run.arm: {} for run in every}
    provenance = {}
    for run in every:
        if results := finished(run.config, run.folder):
            (row,) = (row for row in results["rows"] if row["name"] == "student")
            known = results["log"] | row
            measured = {m.key: m.scale * known[m.key] for m in study.measures if known.get(m.key) is not None}
            found[run.arm][run.seed] = measured
            provenance = {key: value for key, value in results["provenance"].items() if key not in ("seed", "command")}
    about = {"name": study.name, "question": study.question, "baseline": study.baseline, "measures": study.measures}
    return {**about, "runs": found, "config": study.base.to_dict(), "provenance": provenance}


def script(study: Study, words: Sequence[str], count: int) -> str:
    """A shell script that submits the teachers, every run as a task of an array, and at last table and page."""
    module = "jaxdistill.main sweep" if study.name == "sweep" else f"experiments.{study.name}"
    command = f"python -m {module} {shlex.join(words)}".strip()
    wrapped = lambda more: f"--wrap {shlex.quote(f'{command} {more}'.strip())}"
    return f"""#!/bin/bash
# Give the options of sbatch: bash FILE --partition=gpu --time=1:00:00
set -e
submit() {{ sbatch --parsable --job-name={study.name} "$@"; }}
teachers=$(submit "$@" {wrapped("--run teachers")})
runs=$(submit "$@" --dependency=afterok:"$teachers" --array=0-{count - 1} {wrapped("--run $SLURM_ARRAY_TASK_ID")})
submit "$@" --dependency=afterany:"$runs" {wrapped("")}
"""


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The words that every study understands."""
    words = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = "where all of it lies, and what is finished there is not run again; %(default)s"
    words.add_argument("--workdir", default=Path("runs", name), type=Path, help=known)
    words.add_argument("--seeds", default=3, type=int, help="runs of every arm, of seeds 0, 1, ...; %(default)s")
    words.add_argument("--run", default="", help="the number of one run, or 'teachers': nothing else is run")
    words.add_argument("--slurm", action="store_true", help="print a script that runs the study on a cluster")
    return words


def obey(study: Study, known: argparse.Namespace, words: Sequence[str]) -> None:
    """Does what a command line asks for; `known` is what `parser` read of its words."""
    console = Console()
    _check(study)
    if known.slurm:
        count = len(expand(study)) * known.seeds
        sys.stdout.write(script(study, [word for word in words if word != "--slurm"], count))
    elif not known.run:
        conduct(study, known.workdir, known.seeds, console)
    else:
        checkpoints = teach(study, known.workdir, console)
        every = {str(n): run for n, run in enumerate(runs(study, known.workdir, known.seeds, checkpoints))}
        if known.run in every:
            learn(every[known.run], console)
        elif known.run != "teachers":
            raise ConfigError("--run", f"{known.run!r} is no run; there are 'teachers' and 0 to {len(every) - 1}.")


@contextmanager
def exit_codes() -> Iterator[None]:
    """0 done, or stopped and saved, between two runs too; 2 a mistake in the study; 4 no usable checkpoint."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(f"{signal.Signals(number).name} came between two runs")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}  # a run has its own
    try:
        yield
    except Stopped as stopped:
        sys.stderr.write(f"stopped: {stopped}. The same command goes on from there.\n")
    except (ConfigError, CheckpointError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2 if isinstance(error, ConfigError) else 4)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(study: Study, doc: str | None) -> None:
    """The command of a study."""
    known = parser(study.name, doc).parse_args()
    with exit_codes():
        obey(study, known, sys.argv[1:])


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    asked = parser("sweep", __doc__)
    asked.prog = "jaxdistill sweep"
    asked.add_argument("--config", required=True, help="a .py with get_config(), or a saved config.json")
    asked.add_argument("--axis", action="append", nargs="+", required=True, help="a key's path, and its values")
    known, more = asked.parse_known_args(argv)
    axes = {path: tuple(texts) for path, *texts in known.axis}
    with exit_codes():
        first = " | ".join(texts[0] for texts in axes.values())
        base: Config = override(load(known.config), changes(more))
        obey(Study("sweep", f"What is {' and '.join(axes)} worth?", base, axes, first), known, sys.argv[1:])
    return 0
