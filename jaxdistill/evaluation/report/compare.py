"""Write the page that compares finished runs: results, differences of their configs, and links to their own pages."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.evaluation.report import estimates, layout, table, tables
from jaxdistill.evaluation.report.formats import aligned, p_value
from jaxdistill.evaluation.report.markup import Markup, element, join
from jaxdistill.evaluation.report.template import CSS, PAGE

IGNORED_KEYS = ("logging.", "distributed.")  # keys that do not change a result


class ComparedRun(NamedTuple):
    """One of the runs on a page that compares several runs.

    folder: folder of the run
    name: name of the run on the page: the last parts of its folder, as many as distinguish it from the other runs
    row: the row of the compared model in the run's result table
    config: all keys of the run's config, by path
    pair: comparison with the first run on the same test records, the fields of `PairedRecords`; None if not possible
    title: title of the run
    """

    folder: str
    name: str
    row: Mapping[str, Any]
    config: Mapping[str, str]
    pair: Mapping[str, Any] | None
    title: str


def cells(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """Format the results of the compared runs as a table of text, one row per run; the first row is the heading."""
    rows = [run.row for run in runs]
    shown = table.columns_of(rows)
    compared = any(run.pair for run in runs)
    over = ("over the first", "95 % interval", "p") if compared else ()
    lines = [["run", *(title for _, title, _ in shown), *over]]
    for run in runs:
        values = ["-" if run.row.get(key) is None else form(run.row) for key, _, form in shown]
        lines.append([run.name, *values, *(_difference(run.pair) if compared else ())])
    return lines


def _difference(pair: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if pair is None:
        return "", "", ""
    p = p_value(pair["p"]).removeprefix("= ")
    return f"{pair['difference']:+.2f}", f"{pair['low']:.2f} to {pair['high']:.2f}", p


def text_table(runs: Sequence[ComparedRun]) -> str:
    """Return the results of the compared runs as a table for the terminal, and name the runs that could not be tested.

    A run is tested against the first one (McNemar's test) if both have the same labelled test records.
    """
    untested = [run.name for run in runs[1:] if run.pair is None]
    reason = f"No test for {', '.join(untested)}: not known to have the test records of {runs[0].name}, with labels."
    return "\n".join([aligned(cells(runs)), *([reason] if untested else [])])


def differences(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """Return a table of text with the config keys in which the runs differ, under a heading; one column per run."""
    keys = dict.fromkeys(key for run in runs for key in run.config if not key.startswith(IGNORED_KEYS))
    unlike = [key for key in keys if len({run.config.get(key) for run in runs}) > 1]
    heading = ["key", *(run.name for run in runs)]
    return [heading, *([key, *(run.config.get(key, "–") for run in runs)] for key in unlike)]


def render(runs: Sequence[ComparedRun], model: str, place: Path) -> str:
    """Return the HTML page that compares runs.

    Args:
        runs: the runs; the others are compared with the first one.
        model: name of the compared model, such as "student".
        place: folder of the page, from which the links to the pages of the runs start.
    """
    heading, *lines = cells(runs)
    keys, *unlike = differences(runs)
    title = f"{len(runs)} runs compared: {model}"
    note = (
        "On held-out data. Differences are those of the accuracy, in points, to the first run, on the same test "
        "records with McNemar's exact test; runs with other test records have none. One run of each does not show the "
        "spread over seeds. Each run was timed when it ended: times of one network differ with the machine's load."
    )
    links = element("ul", *(element("li", _link(run, place)) for run in runs))
    body = (
        element("h1", title),
        layout.section("Results", join((_figure(runs), tables.plain_table(heading, lines))), note),
        layout.section("Where the configs differ", tables.plain_table(keys, unlike) if unlike else Markup()),
        layout.section("Pages of the runs", links),
    )
    return PAGE.format(title=element("title", title), css=CSS, body=join(body))


def _link(run: ComparedRun, place: Path) -> Markup:
    report = Path(run.folder).resolve() / "report.html"
    return element("a", run.folder, href=os.path.relpath(report, place)) if report.is_file() else join((run.folder,))


def _figure(runs: Sequence[ComparedRun]) -> Markup:
    """Draw the accuracy of each run; return an empty string if fewer than two runs have an accuracy."""
    values = [(run.name, 100 * run.row["accuracy"]) for run in runs if run.row.get("accuracy") is not None]
    if len(values) < 2:
        return Markup()
    rows = [estimates.Estimate(name, (value,), value, value, value) for name, value in values]
    return layout.figure("Accuracy", "One run each.", estimates.figure(rows, rows[0].name, "accuracy (%)", None))
