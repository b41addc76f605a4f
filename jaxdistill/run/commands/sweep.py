r"""Run every combination of config values and seeds, and compare the results in a table, a figure and an HTML page.

    jaxdistill sweep --config configs/methods.py:kd --workdir runs/temperatures --seeds 3 \
        --axis objective.kd.term "kd(temperature=1.0)" "kd(temperature=4.0)" "kd(temperature=8.0)"

Each combination is an arm of the study. The first one is the baseline that the others are compared with. Repeat --axis
to combine several keys; --config.a.b=value changes a key in all arms. The same command resumes an interrupted study and
repeats no finished run. --slurm prints a script that runs the study as an array of Slurm jobs.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxdistill.core import seal
from jaxdistill.core.errors import BadStartError, ConfigError, DamageError, NonFiniteError, Stopped
from jaxdistill.core.notes import note_damage
from jaxdistill.evaluation.report import study as pages
from jaxdistill.evaluation.report.formats import duration
from jaxdistill.run import failures, presets
from jaxdistill.run.commands import cache, cli
from jaxdistill.run.config import Config, differ, override, parse_changes
from jaxdistill.run.config_files import load_config, source
from jaxdistill.run.exit_codes import UNFINISHED
from jaxdistill.run.output_checks import check_study
from jaxdistill.run.slurm import slurm_script
from jaxdistill.run.study import (
    Run,
    Study,
    check_arms,
    check_unchanged,
    expand,
    finished_results,
    merged_config,
    quality_text,
    run_or_resume,
    runs,
    with_checkpoints,
)
from jaxdistill.run.workdir import check_same_parts, locked

NOTHING_TO_COMPARE = "every run diverged, and nothing can be compared. Lower the rate, or set clip_norm"


def train_teachers(study: Study, workdir: Path, console: Console) -> dict[str, str]:
    """Train the teachers that all arms of a study share, except for those that are already trained.

    A study compares variants of a config, called arms. If `study.cached` is set, the outputs of all its teachers are
    then written to disk.

    Args:
        study: a base config and its variants (arms).
        workdir: folder of the study; the teachers are kept in it.
        console: where progress is printed.

    Returns:
        The checkpoint folder of each shared teacher, by teacher name.
    """
    checkpoints: dict[str, str] = {}
    for name, config in study.teachers.items():
        ready = differ(config, teachers=with_checkpoints(config, checkpoints))
        rows = run_or_resume(ready, workdir / "teachers" / name, study.source)
        (row,) = (row for row in rows if row["name"] == "student")
        console.print(f"teacher {name}: {quality_text(row)}")
        checkpoints[name] = str(workdir / "teachers" / name)
    trained = {name for name, entry in study.base.teachers.items() if entry.steps and not entry.checkpoint}
    if trained:  # train them in a run of the base config with one student step
        for row in run_or_resume(differ(study.base, steps=1, control=False), workdir / "taught", study.source):
            if row["name"].removeprefix("teacher ") in trained:
                console.print(f"{row['name']}: {quality_text(row)}")
    checkpoints |= {name: str(workdir / "taught" / "teachers" / name) for name in trained}
    if study.cached:
        cache.write(merged_config(study, workdir, checkpoints), console)
    return checkpoints


def run_one(run: Run, console: Console) -> None:
    """Execute or resume one run of a study, and print a measure of the student's quality, such as its accuracy.

    Raises:
        NonFiniteError: the training diverged.
    """
    rows = run_or_resume(run.config, run.folder, run.source)
    (quality,) = (quality_text(row) for row in rows if row["name"] == "student")
    console.print(f"{run.arm}, seed {run.seed}: {quality}", highlight=False, soft_wrap=True)


def run_all(unfinished: Sequence[Run], console: Console) -> list[NonFiniteError]:
    """Execute the unfinished runs of a study one after the other, and return a list of the errors of diverged runs.

    After each run, print how many runs are done and the estimated time for the others. If a run diverges, its error is
    printed, and its result is missing.
    """
    start, errors = time.perf_counter(), []
    for done, run in enumerate(unfinished, 1):
        try:
            run_one(run, console)
        except NonFiniteError as error:
            errors.append(error)
            console.print(f"{run.arm}, seed {run.seed}: left out, {error}", highlight=False, soft_wrap=True)
        seconds_per_run = (time.perf_counter() - start) / done
        remaining = duration(seconds_per_run * (len(unfinished) - done))
        console.print(f"{done} of {len(unfinished)}; about {remaining} left")
    return errors


def run_study(study: Study, workdir: Path, seeds: int, console: Console, shows_table: bool = True) -> list[pages.Line]:
    """Execute all unfinished runs of a study, and write a table, a figure and a page that compare its arms over seeds.

    Args:
        study: a base config and its variants (arms).
        workdir: folder of the study, for all runs and results.
        seeds: number of runs for each arm, with seeds 0, 1, ...
        console: where progress and the table are printed.
        shows_table: print the table; otherwise only progress is printed.

    Returns:
        The lines of the table, one for each arm.

    Raises:
        BadStartError: the loss of a run is not finite before the first update, so that it is a mistake, not divergence;
            raised after all other runs are done and the page is written.
        NonFiniteError: every run diverged.
    """
    check_arms(study, data=True)
    with locked(workdir):
        _check_workdir(study, workdir)
        all_runs = runs(study, workdir, seeds, train_teachers(study, workdir, console))
        finished = [run for run in all_runs if finished_results(run.config, run.folder)]
        for run in finished:
            check_same_parts(run.folder, run.source)
        for run in {run.arm: run for run in finished}.values():
            check_unchanged(run.config, run.folder)
        folders = {run.folder for run in finished}
        unfinished, errors = [run for run in all_runs if run.folder not in folders], []
        console.print(f"{len(finished)} of {len(all_runs)} runs were already finished")
        try:
            errors = run_all(unfinished, console)
        finally:  # also after an interruption, so that `jaxdistill.evaluation.report.study` can show the finished runs
            seal.write(workdir / "study.json", study_results(study, all_runs))
    mistakes = [error for error in errors if isinstance(error, BadStartError)]
    if len(errors) == len(all_runs):
        raise mistakes[0] if mistakes else NonFiniteError(NOTHING_TO_COMPARE)
    lines = pages.write(workdir)
    if shows_table:
        console.print(pages.markdown(pages.read(workdir), lines), markup=False, highlight=False, soft_wrap=True)
        console.print(f"Report: {workdir / 'study.html'}")
    if mistakes:
        raise mistakes[0]
    return lines


def _check_workdir(study: Study, workdir: Path) -> None:
    """Require that a folder holds no results of another study, which has arms (variants) that this study lacks."""
    try:
        written = pages.read(workdir)["runs"] if (workdir / "study.json").is_file() else {}
    except DamageError as error:  # it is made again
        note_damage(error)
        return
    if removed := sorted(set(written) - set(expand(study))):
        problem = f"{str(workdir)!r} holds a study with the arm {removed[0]!r}, which this study lacks"
        raise ConfigError("--workdir", f"{problem}. Choose another folder, or delete its study.json.")


def study_results(study: Study, all_runs: Sequence[Run]) -> dict[str, Any]:
    """Return the content of study.json, a dict: the results of a study, with its config, command and software versions.

    The results are the measures of every finished run, such as accuracy, by arm (variant of the base config), seed and
    key of the measure.

    Args:
        study: a base config and its variants (arms).
        all_runs: all runs of the study; unfinished runs are left out.
    """
    measured: dict[str, dict[int, dict[str, float]]] = {run.arm: {} for run in all_runs}
    provenance: dict[str, Any] = {}
    pages_of_runs: dict[str, dict[int, str]] = {run.arm: {} for run in all_runs}
    for run in all_runs:
        pages_of_runs[run.arm][run.seed] = "/".join((*run.folder.parts[-2:], "report.html"))
        if results := finished_results(run.config, run.folder):
            (row,) = (row for row in results["rows"] if row["name"] == "student")
            values = results["log"] | row
            present = [measure for measure in study.measures if values.get(measure.key) is not None]
            measured[run.arm][run.seed] = {measure.key: measure.scale * values[measure.key] for measure in present}
            provenance = {key: value for key, value in results["provenance"].items() if key not in ("seed", "command")}
    about = {"name": study.name, "question": study.question, "baseline": study.baseline, "measures": study.measures}
    return {
        **about,
        "command": study.command_line,
        "runs": measured,
        "pages": pages_of_runs,  # relative to the folder of the study
        "config": study.base.to_dict(),
        "provenance": provenance,
    }


def parser(name: str, doc: str | None, program: str = "") -> cli.Parser:
    """Build an argument parser with the options that every study has: --workdir, --seeds, --run and --slurm.

    Args:
        name: name of the study; the default workdir (folder of the study) is `runs/NAME`.
        doc: description of the study in `--help`.
        program: what the user types before the arguments; if empty, the program's name.
    """
    study_parser = cli.Parser(program, doc)
    workdir = "folder of the study; finished runs there are not repeated; default %(default)s"
    study_parser.add_argument("--workdir", default=Path("runs", name), type=Path, help=workdir)
    study_parser.add_argument(
        "--seeds", default=3, type=int, help="runs of every arm, with seeds 0, 1, ...; default %(default)s"
    )
    study_parser.add_argument("--run", default="", help="execute only the run with this number, or only 'teachers'")
    study_parser.add_argument("--slurm", action="store_true", help="print a script that runs the study on a cluster")
    return study_parser


MOST_SEEDS = 10_000


def execute(study: Study, options: argparse.Namespace) -> None:
    """Run a whole study, run a part of it, or print a script for the scheduler Slurm, as its command line asks.

    A part is a single run, or the training of the teachers.

    Args:
        study: a base config and its variants (arms).
        options: arguments that a parser from the function `parser` returned.
    """
    console = Console()
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise ConfigError("--seeds", f"{options.seeds} seeds; give 1 to {MOST_SEEDS}.")
    if options.slurm and options.run:
        raise ConfigError("--run", "one run is executed, and --slurm prints a script for all; leave one of them out.")
    if not options.slurm:
        check_study(options.workdir)
    check_arms(study)
    if options.slurm:
        sys.stdout.write(slurm_script(study, options.workdir, options.seeds))
    elif not options.run:
        run_study(study, options.workdir, options.seeds, console)
    else:
        _execute_part(study, options, console)


def _execute_part(study: Study, options: argparse.Namespace, console: Console) -> None:
    count = len(expand(study)) * options.seeds
    if options.run not in ("teachers", *map(str, range(count))):
        raise ConfigError("--run", f"{options.run!r} is not a run; choose 'teachers' or 0 to {count - 1}.")
    checkpoints = train_teachers(study, options.workdir, console)
    if options.run != "teachers":
        run_one(runs(study, options.workdir, options.seeds, checkpoints)[int(options.run)], console)


def guarded(work: Callable[[], int | None], debug: bool = False, workdir: str | Path = "", part: bool = False) -> int:
    """Call a function that runs a study, and return an exit code; an error is printed in one line (`failures.py`).

    SIGTERM or Ctrl-C between two runs ends the study without an error, because the same command resumes it.

    Args:
        work: the function, `() -> exit code`; it may return None for exit code 0.
        debug: print the traceback of an error too.
        workdir: folder of the study.
        part: True if the function executes only a part of the study; the exit code after a stop is then `UNFINISHED`.
    """

    def stop(number: int, frame: Any) -> None:
        raise Stopped(f"{signal.Signals(number).name} received between two runs")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return failures.run(work, debug, str(workdir), UNFINISHED if part else 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(study: Study, doc: str | None, prepare: Callable[[Console], None] | None = None) -> None:
    """Parse the command line of a module, such as `python -m experiments.NAME`, and run its study; exit at the end.

    Args:
        study: a base config and its variants (arms).
        doc: docstring of the module, shown by `--help`.
        prepare: function `(console) -> None` that writes files which the runs need, such as caches; it is called first.
    """
    options = parser(study.name, doc).parse_args()

    def work() -> None:
        if prepare is not None:
            prepare(Console())
        execute(study, options)

    sys.exit(guarded(work, options.debug, options.workdir, bool(options.run)))


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill sweep`, which compares config values over several seeds, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    sweep_parser = parser("sweep", __doc__, "jaxdistill sweep")
    cli.add_config_options(sweep_parser)
    sweep_parser.add_argument("--axis", action="append", nargs="+", required=True, help="a config key, and its values")
    options, changes = sweep_parser.parse_known_args(argv)

    def work() -> None:
        options.config = options.config or presets.find(options.preset)
        axes = _axes(options.axis, changes)
        baseline = " | ".join(texts[0] for texts in axes.values())
        base: Config = override(load_config(options.config, options.trust_source), parse_changes(changes))
        question = f"What is the effect of {' and '.join(axes)}?"
        axis_words = [word for axis in options.axis for word in ("--axis", *axis)]
        words = ("--config", options.config, *["--trust-source"] * options.trust_source, *axis_words, *changes)
        command = ("python", "-m", "jaxdistill.main", "sweep", *words)
        study = Study("sweep", question, base, axes, baseline, command=command, source=source(options.config))
        execute(study, options)

    return guarded(work, options.debug, options.workdir, bool(options.run))


def _axes(arguments: Sequence[Sequence[str]], changes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the values of each axis by config key, from the options `--axis KEY VALUE ...`.

    Raises:
        ConfigError: a key or a value is given twice, or a key is set elsewhere.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for path, *texts in arguments:
        if not texts:
            raise ConfigError(f"--axis {path}", "has no values. Give them after the key, such as --axis rate 0.1 0.01.")
        twice = [text for number, text in enumerate(texts) if text in texts[:number]]
        if path in axes or twice:
            raise ConfigError(f"--axis {path}", f"{twice[0] if twice else path!r} is given twice; arms must differ.")
        if path == "seed":
            raise ConfigError("--axis seed", "each arm is run with seeds 0, 1, ...; use --seeds instead.")
        if any(change.startswith(f"--config.{path}=") for change in changes):
            raise ConfigError(f"--axis {path}", f"--config.{path} sets the same key; leave one of them out.")
        axes[path] = tuple(texts)
    return axes
