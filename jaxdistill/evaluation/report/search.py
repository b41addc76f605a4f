"""Write the page of a search for the best student: accuracy against latency and file size, and the candidates."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdistill.evaluation.report import layout, tables
from jaxdistill.evaluation.report.drawing import svg
from jaxdistill.evaluation.report.formats import aligned, digits
from jaxdistill.evaluation.report.markup import Markup, element, join
from jaxdistill.evaluation.report.template import CSS, PAGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS = {"latency_ms": "ms", "megabytes": "MB"}  # what a budget may limit, with its unit
FLOATS, DISTILLED, ROUNDED, ALONE = "floats", "distilled", "distilled, rounded afterwards", "alone"  # kinds of files
MARKS = {
    FLOATS: ("s", "#555555"),
    DISTILLED: ("o", "#1f77b4"),
    ROUNDED: ("^", "#ff7f0e"),
    ALONE: ("x", "#999999"),
}


PROTOCOL = (
    "The largest candidates within the budget were trained: first those that no other one within it exceeds in every "
    "argument. Accuracies are those of the files on the test records, by which the student was chosen, too. Times are "
    "medians, with the range of 80 % of the measurements. A student on labels alone is shown for comparison, and not "
    "chosen."
)


class Point(NamedTuple):
    """The accuracy, latency and size of a candidate's file (or the teacher's) in a search for the best student.

    label: name of the candidate, or of the teacher
    kind: how it was trained, a key of `MARKS`
    accuracies: accuracy of the file on the test records, one value for each seed
    latency_ms: time of one example, in milliseconds
    megabytes: size of the file, 10^6 bytes
    problem: why a file was set aside; empty if none was
    spread: limits of the range of 80 % of the measured times, in milliseconds
    on_device: how many operations the device runs, as text; empty if it runs all, or if this is not known
    """

    label: str
    kind: str
    accuracies: tuple[float, ...]
    latency_ms: float
    megabytes: float
    problem: str = ""
    spread: tuple[float, float] = (math.nan, math.nan)
    on_device: str = ""

    @property
    def mean(self) -> float:
        """Return the mean accuracy over seeds, or NaN if it was not measured."""
        return sum(self.accuracies) / len(self.accuracies) if self.accuracies else math.nan

    def is_within(self, budget: Mapping[str, float]) -> bool:
        """Return True if the file is within the budget, such as `{"latency_ms": 2.0, "megabytes": 1.0}`."""
        return all(getattr(self, name) <= limit for name, limit in budget.items())


def front(points: Sequence[Point], cost: str) -> list[Point]:
    """Return the Pareto front of accuracy and cost: the files that no other one beats at the same or a lower cost.

    The cheapest file comes first.

    Args:
        points: the measured files; those with a problem are left out.
        cost: "latency_ms" or "megabytes".
    """
    best, kept = -math.inf, []
    right = [p for p in points if not p.problem and not math.isnan(p.mean) and not math.isnan(getattr(p, cost))]
    for point in sorted(right, key=lambda p: (getattr(p, cost), -p.mean)):
        if point.mean > best:
            kept.append(point)
            best = point.mean
    return kept


def cells(points: Sequence[Point]) -> list[list[str]]:
    """Format accuracy, latency and size of the files of a search as a table of text; the first row is the heading."""
    rows = [["student", "learns", "accuracy %", "seeds", "ms", "range", "MB", "on the device"]]
    for point in points:
        aside = " (set aside)" if point.problem else ""
        time = "-" if math.isnan(point.latency_ms) else digits(point.latency_ms)
        accuracy = "-" if math.isnan(point.mean) else f"{100 * point.mean:.2f}"
        range_of = "-" if math.isnan(point.spread[0]) else "-".join(map(digits, point.spread))
        numbers = accuracy, str(len(point.accuracies)), time, range_of, f"{point.megabytes:.3f}"
        rows.append([f"{point.label}{aside}", point.kind, *numbers, point.on_device or "-"])
    return rows if any(point.on_device for point in points) else [row[:-1] for row in rows]


def text_table(points: Sequence[Point]) -> str:
    """Return accuracy, latency and size of the files of a search as a table for the terminal."""
    return aligned(cells(points))


def sentence(
    chosen: Point, points: Sequence[Point], budget: Mapping[str, float], device: str, has_time: bool = True
) -> str:
    """Return the sentence that names the chosen student of a search, and compares it with its teacher and its control.

    The control is the same student trained on labels alone.

    Args:
        chosen: the file of the chosen student.
        points: all measured files.
        budget: the limits, such as `{"latency_ms": 2.0}`.
        device: spec string of the device, such as `cpu(threads=1)`.
        has_time: whether the times are those of the device, and not of the processor of this machine.
    """
    limits = " and ".join(f"{limit:g} {UNITS[name]}" for name, limit in budget.items())
    text = f"Within {limits} on {device}, the best student is {chosen.label} ({chosen.kind}): "
    text += f"{100 * chosen.mean:.2f} %, {digits(chosen.latency_ms)} ms, {digits(chosen.megabytes)} MB"
    text += "" if has_time else " (the time is that of this machine's processor)"
    text += f", {chosen.on_device}" if chosen.on_device else ""
    others = {(point.label, point.kind): point for point in points}
    if control := others.get((chosen.label, ALONE)):
        text += f"; the same student on labels alone reaches {100 * control.mean:.2f} %"
        text += ", so that no gain by its teacher is shown" if control.mean >= chosen.mean else ""
    if teachers := [point for point in points if point.label.startswith("teacher ")]:
        best = max(teachers, key=lambda point: point.mean)
        share = f"{best.megabytes / chosen.megabytes:.1f} times the bytes"
        if not math.isnan(best.latency_ms):
            share = f"{best.latency_ms / chosen.latency_ms:.1f} times the time and {share}"
        text += f"; the {best.label} reaches {100 * best.mean:.2f} % with {share}"
    if not chosen.is_within(budget):
        text += "; its file, measured again, is beyond the budget, as times vary"
    seeds = len(chosen.accuracies)
    several = f"{seeds} seeds; the best of several is a little worse on other records"
    return f"{text} ({'one seed: no interval' if seeds == 1 else several})."


def figure(points: Sequence[Point], chosen: Point) -> Markup:
    """Draw accuracy against latency, and against file size; a line joins the Pareto front (see `front`)."""

    def draw(drawing: "Figure") -> None:
        axes = drawing.subplots(1, 2, sharey=True)
        for axis, (cost, unit) in zip(axes, UNITS.items(), strict=True):
            best = front(points, cost)
            axis.plot([getattr(p, cost) for p in best], [100 * p.mean for p in best], color="#cccccc", zorder=1)
            kinds = dict.fromkeys(point.kind for point in points)
            for kind in (each for each in kinds if each in MARKS):
                mark, colour = MARKS[kind]
                of_kind = [point for point in points if point.kind == kind]
                costs, heights = [getattr(p, cost) for p in of_kind], [100 * p.mean for p in of_kind]
                label = "teacher, floats" if kind == FLOATS else kind
                axis.scatter(costs, heights, marker=mark, color=colour, label=label, zorder=2)
            place = getattr(chosen, cost), 100 * chosen.mean
            axis.annotate("chosen", place, xytext=(6, -12), textcoords="offset points")
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
            axis.xaxis.set_minor_formatter(lambda value, position: "")
            axis.set_xlabel({"ms": "time of one example (ms)", "MB": "size of the file (MB)"}[unit])
        axes[0].set_ylabel("accuracy (%)")
        axes[1].legend(loc="lower right")

    return svg(draw, (9.0, 3.6), "Accuracy against time and bytes")


def render(
    text: str,
    points: Sequence[Point],
    chosen: Point,
    sizes: Sequence[Mapping[str, Any]],
    device: str,
    command: str,
) -> str:
    """Return the HTML page of a search for the best student.

    Args:
        text: the sentence about the chosen student, from `sentence`.
        points: the measured files.
        chosen: the file of the chosen student.
        sizes: a dict for each candidate: the fields of `run.search.Size`, and `inside`, True if it fits the budget.
        device: spec string of the device.
        command: the command of the search.
    """
    heading, *rows = cells(points)
    drawn = layout.figure(
        "All files", "The line joins the files that no cheaper file equals in accuracy.", figure(points, chosen)
    )
    spread = lambda size: f"{digits(size['latency_ms'])} ({digits(size['low_ms'])}-{digits(size['high_ms'])})"
    time = lambda size: spread(size) if size["latency_ms"] < 1e9 else "too large"
    number = lambda size: [f"{size['parameters']:,}", time(size), f"{size['megabytes']:.3f}"]
    measured = [[size["label"], *number(size), "yes" if size["inside"] else "no"] for size in sizes]
    title = "Search for the best student"
    body = (
        element("h1", title),
        element("p", text, class_="summary"),
        layout.section("Finalists", join((drawn, tables.plain_table(heading, rows))), PROTOCOL),
        layout.section(
            "Candidates",
            tables.plain_table(["candidate", "parameters", "ms", "MB", "within the budget"], measured),
            f"Measured untrained on {device}: time and bytes do not depend on the weights.",
        ),
        layout.section("Repeat this search", element("pre", command, class_="command")),
    )
    return PAGE.format(title=element("title", title), css=CSS, body=join(body))
