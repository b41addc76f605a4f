"""The results of a study as a table, a figure and a page.

    python -m jaxdistill.evaluation.report.study WORKDIR

Reads the `study.json` that `jaxdistill sweep` has written, and writes `table.md`, `figure.svg`, `figure.png` and
`study.html` beside it.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.evaluation.comparison import Paired, interval, paired, spread
from jaxdistill.evaluation.report import estimates, page, tables
from jaxdistill.evaluation.report.markup import Markup, element, join
from jaxdistill.evaluation.report.template import CSS, PAGE


class Measure(NamedTuple):
    """What is told of a run.

    key: of the student's row in results.json, or of the last line of its log
    title: on the page, with its unit
    scale: what it is multiplied by
    digits: behind the point
    """

    key: str
    title: str
    scale: float = 1.0
    digits: int = 2


ACCURACY = Measure("accuracy", "accuracy (%)", 100.0)


class Line(NamedTuple):
    """What the table says of an arm.

    values: of the first measure, by seed
    mean, low, high: of these, with the 95 % interval (Student's t)
    gain: over the baseline, of the seeds that both have; None for the baseline
    others: mean and standard deviation of the further measures, empty where there is none
    """

    arm: str
    values: Mapping[str, float]
    mean: float
    low: float
    high: float
    gain: Paired | None
    others: tuple[str, ...]


def read(workdir: Path) -> dict[str, Any]:
    """study.json, with its measures as `Measure`.

    Raises:
        ConfigError: there is none.
    """
    file = workdir / "study.json"
    if not file.is_file():
        raise ConfigError("WORKDIR", f"{str(file)!r} is no file. Give the --workdir of a study that has begun.")
    study = json.loads(file.read_text())
    return {**study, "measures": [Measure(*measure) for measure in study["measures"]]}


def summary(study: Mapping[str, Any]) -> list[Line]:
    """A line for every arm that has finished a run, in the study's order."""
    first, *further = study["measures"]
    values = {arm: {s: run[first.key] for s, run in found.items()} for arm, found in study["runs"].items() if found}
    base = values.get(study["baseline"], {})
    lines = []
    for arm, own in values.items():
        shared = [seed for seed in own if seed in base]
        over = arm != study["baseline"] and shared
        gain = paired([own[s] for s in shared], [base[s] for s in shared]) if over else None
        told = [[run[m.key] for run in study["runs"][arm].values() if m.key in run] for m in further]
        others = tuple(spread(x, m.digits) if x else "" for m, x in zip(further, told, strict=True))
        several = list(own.values())
        lines.append(Line(arm, own, float(np.mean(several)), *interval(several), gain, others))
    return lines


def cells(study: Mapping[str, Any], lines: Sequence[Line]) -> list[list[str]]:
    """The table as text, its heading first."""
    first, *further = study["measures"]
    form = lambda x: f"{x:.{first.digits}f}"
    between = lambda low, high, seeds: f"{form(low)} to {form(high)}" if seeds > 1 else ""
    over = f"over {study['baseline']}"
    heading = ["arm", first.title, "95 % interval", over, "95 % interval", "p", "seeds", *(m.title for m in further)]
    found = [heading]
    for line in lines:
        seeds, gain = len(line.values), line.gain
        p = "" if gain is None or math.isnan(gain.p) else f"{gain.p:.3f}" if gain.p >= 0.001 else "< 0.001"
        more = [f"{gain.mean:+.{first.digits}f}", between(gain.low, gain.high, seeds), p] if gain else ["", "", ""]
        own = [line.arm, form(line.mean), between(line.low, line.high, seeds)]
        found.append([*own, *more, str(seeds), *line.others])
    return found


def markdown(study: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """The table as a README has it."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in cells(study, lines)]
    heading, *rest = (f"| {' | '.join(row)} |" for row in escaped)
    return "\n".join((heading, "|---" * len(escaped[0]) + "|", *rest))


def figure(study: Mapping[str, Any], lines: Sequence[Line], png: Path | None = None) -> Markup:
    """Every arm's seeds, mean and interval, beside the baseline's."""
    rows = [estimates.Estimate(x.arm, tuple(x.values.values()), x.mean, x.low, x.high) for x in lines]
    return estimates.figure(rows, study["baseline"], study["measures"][0].title, png)


def sentence(study: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """What came out, in one sentence."""
    best = max(lines, key=lambda line: line.mean)
    told = f"Greatest {study['measures'][0].title}: {best.arm}, {best.mean:.{study['measures'][0].digits}f}"
    if not best.gain or math.isnan(best.gain.p):
        return f"{told}."
    digits = study["measures"][0].digits
    p = f"p = {best.gain.p:.3f}" if best.gain.p >= 0.001 else "p < 0.001"
    return f"{told}, {best.gain.mean:+.{digits}f} over {study['baseline']} ({p}, not corrected for the choice)."


def render(study: Mapping[str, Any], lines: Sequence[Line], svg: Markup) -> str:
    """The page as text."""
    heading, *rest = cells(study, lines)
    count = len(rest) - 1
    note = (
        "Mean over seeds with its 95 % interval (Student's t). Differences are paired, seed by seed; p is of the "
        f"paired t-test, not corrected for {count} comparisons: the least of many is small by chance."
    )
    seeds = sorted({seed for line in lines for seed in line.values}, key=int)
    told = lambda line, seed: f"{line.values[seed]:.2f}" if seed in line.values else "–"
    each = [[line.arm, *(told(line, seed) for seed in seeds)] for line in lines]
    command = f"python -m experiments.{study['name']} --seeds {len(seeds)}"
    body = (
        element("h1", study["question"]),
        element("p", sentence(study, lines), class_="summary"),
        page.section(
            "Result",
            join(
                (
                    page.figure("All arms", "Small: a seed. Large: the mean, with its interval.", svg),
                    tables.plain_table(heading, rest),
                )
            ),
            note,
        ),
        page.section("Seed by seed", tables.plain_table(["arm", *(f"seed {seed}" for seed in seeds)], each)),
        page.config({"config": study["config"]}),
        page.provenance({"provenance": study["provenance"]}),
        page.command({"provenance": {"command": command}}),
    )
    return PAGE.format(title=element("title", study["question"]), css=CSS, body=join(body))


def write(workdir: Path) -> list[Line]:
    """Writes table, figure and page beside study.json."""
    study = read(workdir)
    lines = summary(study)
    if lines:
        svg = figure(study, lines, workdir / "figure.png")
        (workdir / "table.md").write_text(markdown(study, lines) + "\n")
        (workdir / "figure.svg").write_text(svg)
        (workdir / "study.html").write_text(render(study, lines, svg), encoding="utf-8")
    return lines


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("workdir", type=Path)
    try:
        write(words.parse_args().workdir)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
