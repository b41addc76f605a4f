"""Write the results of a study, which compares variants of a run (its arms), as a table, a figure and an HTML page.

    python -m jaxdistill.evaluation.report.study WORKDIR

Reads the `study.json` that `jaxdistill sweep` wrote, and writes `table.md`, `figure.svg`, `figure.png` and `study.html`
to the same folder.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core import seal
from jaxdistill.core.errors import ConfigError, DamageError
from jaxdistill.evaluation.comparison import Paired, interval, paired, spread
from jaxdistill.evaluation.report import estimates, layout, page, tables
from jaxdistill.evaluation.report.formats import p_value
from jaxdistill.evaluation.report.markup import Markup, element, join
from jaxdistill.evaluation.report.template import CSS, PAGE


class Measure(NamedTuple):
    """A quantity that a study (a comparison of variants of a run) reports for each run, such as the student's accuracy.

    key: key of the value in the student's row of results.json, or in the last line of the student's log
    title: title in the report, with the unit
    scale: factor that converts the value to this unit
    digits: number of decimal places
    """

    key: str
    title: str
    scale: float = 1.0
    digits: int = 2


ACCURACY = Measure("accuracy", "accuracy (%)", 100.0)


class Line(NamedTuple):
    """A line of the results table of a study, for one arm (a variant of the run) over all its seeds.

    arm: label of the arm
    values: the study's first measure in each run of the arm, by seed
    mean, low, high: mean of `values`, and the limits of its 95 % confidence interval (Student's t)
    gain: difference to the baseline arm in the first measure, paired by seed; None for the baseline itself, and for an
        arm that has no seed in common with the baseline
    others: mean and standard deviation of each further measure, as text; an empty text if it was not measured
    """

    arm: str
    values: Mapping[str, float]
    mean: float
    low: float
    high: float
    gain: Paired | None
    others: tuple[str, ...]


def read(workdir: Path) -> dict[str, Any]:
    """Read `study.json`, the results of a study (a comparison of variants of a run).

    The measures in it, such as accuracy, become `Measure` objects.

    Args:
        workdir: the folder of the study.

    Raises:
        ConfigError: the file does not exist.
        DamageError: the file is damaged; the command of the study writes it again.
    """
    file = workdir / "study.json"
    try:
        study = seal.read(file, {"measures": list, "runs": dict, "baseline": str})
    except FileNotFoundError:
        cure = "Use the --workdir of a study that was started"
        raise ConfigError("WORKDIR", f"{str(file)!r} does not exist. {cure}.") from None
    return {**study, "measures": [Measure(*measure) for measure in study["measures"]]}


def summary(study: Mapping[str, Any]) -> list[Line]:
    """Compute the lines of a study's results table, one for every arm (variant of the run) with a finished run.

    Args:
        study: the content of `study.json`, from `read`.
    """
    first, *others = study["measures"]
    values = {arm: {s: run[first.key] for s, run in runs.items()} for arm, runs in study["runs"].items() if runs}
    base = values.get(study["baseline"], {})
    lines = []
    for arm, by_seed in values.items():
        shared = [seed for seed in by_seed if seed in base]
        comparable = arm != study["baseline"] and shared
        gain = paired([by_seed[s] for s in shared], [base[s] for s in shared]) if comparable else None
        other_values = [[run[m.key] for run in study["runs"][arm].values() if m.key in run] for m in others]
        spreads = tuple(spread(x, m.digits) if x else "" for m, x in zip(others, other_values, strict=True))
        all_values = list(by_seed.values())
        lines.append(Line(arm, by_seed, float(np.mean(all_values)), *interval(all_values), gain, spreads))
    return lines


def cells(study: Mapping[str, Any], lines: Sequence[Line]) -> list[list[str]]:
    """Format the results table of a study as rows of text; the first row is the heading.

    Args:
        study: the content of `study.json`, from `read`.
        lines: the lines of the table, from `summary`.
    """
    first, *others = study["measures"]
    form = lambda x: f"{x:.{first.digits}f}"
    between = lambda low, high, seeds: f"{form(low)} to {form(high)}" if seeds >= estimates.SEEDS else ""
    difference = f"difference to {study['baseline']}"
    columns = ("arm", first.title, "95 % interval", difference, "95 % interval", "p", "seeds")
    rows = [[*columns, *(m.title for m in others)]]
    for line in lines:
        seeds, gain = len(line.values), line.gain
        p = "" if gain is None or math.isnan(gain.p) else p_value(gain.p).removeprefix("= ")
        comparison = (
            [f"{gain.mean:+.{first.digits}f}", between(gain.low, gain.high, seeds), p] if gain else ["", "", ""]
        )
        result = [line.arm, form(line.mean), between(line.low, line.high, seeds)]
        rows.append([*result, *comparison, str(seeds), *line.others])
    return rows


def markdown(study: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """Format the results table of a study as Markdown.

    Args:
        study: the content of `study.json`, from `read`.
        lines: the lines of the table, from `summary`.
    """
    escaped = [[text.replace("|", "\\|") for text in row] for row in cells(study, lines)]
    heading, *rest = (f"| {' | '.join(row)} |" for row in escaped)
    return "\n".join((heading, "|---" * len(escaped[0]) + "|", *rest))


def figure(study: Mapping[str, Any], lines: Sequence[Line], png: Path | None = None) -> Markup:
    """Draw a figure with the values of all seeds, their mean and its confidence interval, for every arm (variant).

    Args:
        study: the content of `study.json`, from `read`.
        lines: the lines of the results table, from `summary`.
        png: file to which the figure is also written as PNG; None for no such file.
    """
    rows = [estimates.Estimate(x.arm, tuple(x.values.values()), x.mean, x.low, x.high) for x in lines]
    return estimates.figure(rows, study["baseline"], study["measures"][0].title, png)


def sentence(study: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """Return a sentence that names the best arm (variant of the run), and its difference to the baseline arm.

    The best arm has the highest mean of the study's first measure, such as accuracy.

    Args:
        study: the content of `study.json`, from `read`.
        lines: the lines of the results table, from `summary`.
    """
    best = max(lines, key=lambda line: line.mean)
    title, digits = study["measures"][0].title, study["measures"][0].digits
    result = f"Highest {title}: {best.arm}, {best.mean:.{digits}f}"
    if not best.gain or math.isnan(best.gain.p):
        return f"{result}."
    p = f"p {p_value(best.gain.p)}, not corrected for this choice"
    return f"{result}, {best.gain.mean:+.{digits}f} over {study['baseline']} ({p})."


def render(study: Mapping[str, Any], lines: Sequence[Line], svg: Markup) -> str:
    """Return the HTML page that reports the results of a study.

    Args:
        study: the content of `study.json`, from `read`.
        lines: the lines of the results table, from `summary`.
        svg: the figure, from `figure`.
    """
    heading, *rest = cells(study, lines)
    count = len(rest) - 1
    note = (
        "An arm is a variant of the run. Means over seeds with 95 % intervals (Student's t). Differences are paired by "
        f"seed, with the p-value of the paired t-test, not corrected for {count} comparisons: the smallest of many "
        "p-values is small by chance."
    )
    seeds = sorted({seed for line in lines for seed in line.values}, key=int)
    links = study.get("pages") or {}  # an earlier version did not write them

    def value(line: Line, seed: str) -> str:
        if seed not in line.values:
            return "–"
        text, link = f"{line.values[seed]:.2f}", links.get(line.arm, {}).get(seed)
        return element("a", text, href=link) if link else text

    by_seed = [[line.arm, *(value(line, seed) for seed in seeds)] for line in lines]
    command = f"{study.get('command') or 'python -m experiments.' + study['name']} --seeds {len(seeds)}"
    body = (
        element("h1", study["question"]),
        element("p", sentence(study, lines), class_="summary"),
        layout.section(
            "Result",
            join(
                (
                    layout.figure("All arms", "Small dots: seeds. Large marks: means, with their 95 % interval.", svg),
                    tables.plain_table(heading, rest),
                )
            ),
            note,
        ),
        layout.section("Seed by seed", tables.plain_table(["arm", *(f"seed {seed}" for seed in seeds)], by_seed)),
        page.config({"config": study["config"]}),
        page.provenance({"provenance": study["provenance"]}),
        page.command({"provenance": {"command": command}}),
    )
    return PAGE.format(title=element("title", study["question"]), css=CSS, body=join(body))


def write(workdir: Path) -> list[Line]:
    """Write the table, the figure and the HTML page of a study to its folder, from the file `study.json` there.

    Args:
        workdir: the folder of the study.

    Returns:
        The lines of the results table. The list is empty, and nothing is written, if no run of the study is finished.
    """
    study = read(workdir)
    lines = summary(study)
    if lines:
        svg = figure(study, lines, workdir / "figure.png")
        seal.write_text(workdir / "table.md", markdown(study, lines) + "\n")
        seal.write_text(workdir / "figure.svg", svg)
        seal.write_text(workdir / "study.html", render(study, lines, svg))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of a study again, from the command line; return an exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path, help="folder of the study, with study.json")
    try:
        write(parser.parse_args(argv).workdir)
    except (ConfigError, DamageError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 4 if isinstance(error, DamageError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
