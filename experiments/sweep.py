"""Runs a study. What is finished is not run again, what was cut goes on, and a table, a figure and a page are left.

A study is a value (`experiments/study.py`), and `python -m experiments.NAME` hands it to `main`. Without a module:

    python -m experiments.sweep --config configs/methods.py:kd --workdir runs/temperatures --seeds 3 \
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

from rich.console import Console

from experiments import copies, plot
from experiments.once import finished, ran
from experiments.study import Run, Study, expand, runs, taught, together
from jaxdistill.core.checkpoint import CheckpointError, write_json
from jaxdistill.core.errors import ConfigError
from jaxdistill.evaluation.report.formats import duration
from jaxdistill.run.build import check_specs
from jaxdistill.run.commands import cache
from jaxdistill.run.config import changes, differ, load, override
from jaxdistill.run.log import NonFiniteError
from jaxdistill.run.preemption import Stopped
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


def work(left: Sequence[Run], console: Console, as_one: bool = False) -> None:
    """These runs one after the other; how far it is, and for how long to go, by the mean of those that are done.

    Args:
        as_one: the seeds of an arm as one program, where that is possible.
    """
    began, done = time.perf_counter(), 0
    for group in grouped(left) if as_one else [[run] for run in left]:
        if len(group) == 1 or not copies.possible(group[0]):
            for run in group:
                learn(run, console)
        else:
            try:
                copies.learn(group, console)
            except NonFiniteError as error:
                console.print(f"{group[0].arm}: {error}; its seeds go on alone")
                for run in group:
                    learn(run, console)
        done += len(group)
        each = (time.perf_counter() - began) / done
        console.print(f"{done} of {len(left)}; about {duration(each * (len(left) - done))} to go")


def grouped(left: Sequence[Run]) -> list[list[Run]]:
    """The seeds of every arm."""
    return [[run for run in left if run.arm == arm] for arm in dict.fromkeys(run.arm for run in left)]


def _check(study: Study) -> None:
    for config in (*expand(study).values(), *study.teachers.values()):
        check_specs(config)


def conduct(study: Study, workdir: Path, seeds: int, console: Console, as_one: bool = False) -> list[plot.Line]:
    """Runs what is missing, says how far it is, and leaves `study.json`, table, figure and page; the table's lines.

    Args:
        as_one: as of `work`.
    """
    _check(study)
    with held(workdir):
        _same(study, workdir)
        every = runs(study, workdir, seeds, teach(study, workdir, console))
        left = [run for run in every if not finished(run.config, run.folder)]
        console.print(f"{len(every) - len(left)} of {len(every)} runs were finished before")
        try:
            work(left, console, as_one)
        finally:  # of what was cut, `python -m experiments.plot` shows what is there
            write_json(workdir / "study.json", told(study, every))
    lines = plot.write(workdir)
    console.print(plot.markdown(plot.read(workdir), lines), markup=False, highlight=False, soft_wrap=True)
    console.print(f"The page: {workdir / 'study.html'}")
    return lines


def _same(study: Study, workdir: Path) -> None:
    """A folder holds one study; arms may come to it."""
    if (workdir / "study.json").is_file():
        gone = sorted(set(plot.read(workdir)["runs"]) - set(expand(study)))
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
    command = f"python -m experiments.{study.name} {shlex.join(words)}".strip()
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
    one = "the seeds of an arm as one program (vmap): small models that leave a device idle"
    words.add_argument("--together", action="store_true", help=one)
    words.add_argument("--slurm", action="store_true", help="print a script that runs the study on a cluster")
    return words


def obey(study: Study, known: argparse.Namespace, words: Sequence[str]) -> None:
    """Does what a command line asks for; `known` is what `parser` read of its words."""
    console = Console()
    _check(study)
    if known.slurm:
        count = len(expand(study)) * known.seeds
        print(script(study, [word for word in words if word != "--slurm"], count), end="")
    elif not known.run:
        conduct(study, known.workdir, known.seeds, console, known.together)
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
        print(f"stopped: {stopped}. The same command goes on from there.", file=sys.stderr)
    except (ConfigError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 4)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(study: Study, doc: str | None) -> None:
    """The command of a study."""
    known = parser(study.name, doc).parse_args()
    with exit_codes():
        obey(study, known, sys.argv[1:])


if __name__ == "__main__":
    asked = parser("sweep", __doc__)
    asked.add_argument("--config", required=True, help="a .py with get_config(), or a saved config.json")
    asked.add_argument("--axis", action="append", nargs="+", required=True, help="a key's path, and its values")
    given, more = asked.parse_known_args()
    axes = {path: tuple(texts) for path, *texts in given.axis}
    with exit_codes():
        first = " | ".join(texts[0] for texts in axes.values())
        base = override(load(given.config), changes(more))
        obey(Study("sweep", f"What is {' and '.join(axes)} worth?", base, axes, first), given, sys.argv[1:])
