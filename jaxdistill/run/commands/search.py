r"""Find the student that is best within a budget of time and bytes on a device.

    jaxdistill search --config configs/edge.py --workdir runs/search --device "cpu(threads=1)" \
        --budget latency_ms=0.4 megabytes=14 --axis layers 1 2 3 --axis neurons 0.25 0.5 --axis bits 8 32

Candidates are the config's student with other arguments of `student.model`, and bits (8 or 32). All are exported
untrained and measured once on the device. The largest ones within the budget are distilled (first those that no other
one within it exceeds in every argument), beside the same students without a teacher and rounded after their training.
Of the distilled ones, the one with the best accuracy on the test records is chosen. The page search.html shows accuracy
against time and bytes; chosen.json is the config. The same command resumes an interrupted search, and another budget
uses what was measured and trained.
"""

import ast
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.commands import cli
from jaxdistill.run.config_files import source
from jaxdistill.run.exit_codes import UNFINISHED

MOST = 512  # candidates
AXIS = "argument of student.model, or bits, then its values: --axis layers 1 2 3; may be repeated"


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill search`, which finds the best student within a budget, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = cli.parser("search", __doc__)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the search; finished parts are kept")
    parser.add_argument("--device", default="cpu(threads=1)", metavar="SPEC", help="default: %(default)s")
    parser.add_argument(
        "--budget",
        action="extend",
        nargs="+",
        required=True,
        metavar="LIMIT",
        help="such as latency_ms=0.5 megabytes=14",
    )
    parser.add_argument("--axis", action="append", nargs="+", required=True, metavar="WORD", help=AXIS)
    parser.add_argument("--finalists", default=3, type=int, help="students that are distilled; default: %(default)s")
    parser.add_argument("--seeds", default=1, type=int, help="runs of each; default: %(default)s")

    def work(options: Any, config: Any) -> int:
        axes = read_axes(options.axis)
        words = shlex.join(["jaxdistill", "search", *(sys.argv[1:] if argv is None else argv)])
        return _search(config, options, axes, words)

    return cli.run_command(parser, argv, work, UNFINISHED)


def _search(config: Any, options: Any, axes: dict[str, tuple[Any, ...]], command: str) -> int:
    import jax
    from rich.console import Console

    from jaxdistill.export.choice import choose_device
    from jaxdistill.run import search, search_study
    from jaxdistill.run.commands.sweep import MOST_SEEDS
    from jaxdistill.run.config import differ
    from jaxdistill.run.export_files import EXPORTS, slug
    from jaxdistill.run.fill import fill_placeholders
    from jaxdistill.run.output_checks import check_study
    from jaxdistill.run.resolve import resolve
    from jaxdistill.run.workdir import locked

    for name, number, most in (("--finalists", options.finalists, MOST), ("--seeds", options.seeds, MOST_SEEDS)):
        if not 1 <= number <= most:
            raise ConfigError(name, f"{number}: give 1 to {most}.")
    device = choose_device(options.device, "--device")
    budget = search.parse_budget(options.budget, device, options.device)
    check_study(options.workdir)
    config = fill_placeholders(config)
    all_candidates = search.candidates(config, axes, device)
    console = Console()
    with locked(options.workdir):
        resolved = resolve(differ(config, exports={}, student={"quantized": ""}), jax.devices())
        _ = resolved.student  # builds it, which checks its rules, before anything is measured
        if "label" not in resolved.data.test_description.fields:
            raise ConfigError("data.test", "a search compares accuracies, and the test records have no labels.")
        sizes = search.measure_sizes(resolved, all_candidates, options.device, options.workdir, console)
        best = search.finalists(sizes, budget, options.finalists)
        names = "; ".join(size.label for size in best)
        inside = sum(size.excess(budget) <= 1 for size in sizes)
        console.print(f"{inside} within the budget; trained: {names}", highlight=False, soft_wrap=True)
        chosen = [candidate for size in best for candidate in all_candidates if candidate.label == size.label]
        study = search_study.study_of(config, chosen, shlex.split(command), source(options.config))
        all_runs = search_study.distil(study, options.workdir, options.seeds, console)
        points = search_study.measure_files(study, all_runs, chosen, options.device, options.workdir, console)
        point = search_study.choose_point(points, budget)
        candidate = next(each for each in chosen if each.label == point.label)
        run = next(run for run in all_runs if run.arm == f"{point.label} | {point.kind}")
        place = run.folder / "student" / EXPORTS / slug(candidate.format)
        sys.stdout.write(
            search_study.finish(
                options.workdir, config, point, candidate, points, sizes, budget, options.device, command, place
            )
        )
    return 0


def read_axes(arguments: Sequence[Sequence[str]]) -> dict[str, tuple[Any, ...]]:
    """Parse the options `--axis NAME VALUE ...` into a dict from name to a tuple of values.

    A value that is a Python number, tuple or list is converted, a list to a tuple. Any other word stays text.

    Args:
        arguments: the words of each option `--axis`, without `--axis`.

    Raises:
        ConfigError: a name has no values, a name or value is given twice, or there are too many combinations.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    for name, *texts in arguments:
        values = tuple(map(_literal, texts))
        if not values:
            raise ConfigError(f"--axis {name}", "has no values. Write a name, then values: --axis layers 1 2 3.")
        if name in axes or len(set(values)) < len(values):
            raise ConfigError(f"--axis {name}", "the name, or a value, is given twice.")
        axes[name] = values
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST:
        raise ConfigError("--axis", f"{count:,} candidates; give at most {MOST}.")
    return axes


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value if isinstance(value, tuple | int | float) else text
