"""Draw the figure of a study: for every arm (variant of the run), the value of each seed, the mean and its interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxdistill.evaluation.report.drawing import svg
from jaxdistill.evaluation.report.figures import CONTROL, STUDENT
from jaxdistill.evaluation.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SEEDS = 3  # with fewer, an interval says little more than that there are too few


class Estimate(NamedTuple):
    """The results of one arm of a study (a variant of a training run), over several random seeds.

    name: name of the arm
    values: the result for each seed
    mean: mean of `values`
    low, high: limits of the 95 % confidence interval of the mean
    """

    name: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


def figure(rows: Sequence[Estimate], baseline: str, label: str, png: Path | None = None) -> Markup:
    """Draw the results of a study: for each arm (variant of the run), a row with the value of each seed and their mean.

    A line in each row is the 95 % confidence interval of the mean, and a vertical line marks the mean of the baseline.
    The horizontal axis spans the values of all seeds; an interval that is wider is cut off, and an arrow marks the cut.
    Fewer than three seeds have no interval.

    Args:
        rows: the results of the arms.
        baseline: name of the arm that the others are compared with.
        label: label of the horizontal axis, with the unit.
        png: file to which the figure is also written as PNG; None for no such file.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            color = CONTROL if row.name == baseline else STUDENT
            axes.plot(row.values, [place] * len(row.values), "o", color=color, alpha=0.4, markersize=3.5)
            if len(row.values) >= SEEDS:
                axes.plot((row.low, row.high), (place, place), color=color, linewidth=2)
            axes.plot(row.mean, place, "D", color=color, markersize=6)
            if row.name == baseline:
                axes.axvline(row.mean, color=color, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        values = [value for row in rows for value in row.values]
        margin = 0.25 * (max(values) - min(values)) or 1.0
        left, right = min(values) - margin, max(values) + margin
        for place, row in enumerate(rows):
            color = CONTROL if row.name == baseline else STUDENT
            for cut, edge, mark in ((row.low < left, left, "<"), (row.high > right, right, ">")):
                if cut and len(row.values) >= SEEDS:
                    axes.plot(edge, place, mark, color=color, markersize=7, clip_on=False)
        axes.set(xlabel=label, xlim=(left, right), ylim=(len(rows) - 0.4, -0.6))

    summary = "; ".join(_summary(row) for row in rows)
    return svg(draw, (7.2, 1.0 + 0.3 * len(rows)), f"{label}, mean and 95 % interval: {summary}", png)


def _summary(row: Estimate) -> str:
    return f"{row.name} {row.mean:.2f}" + (f" ({row.low:.2f} to {row.high:.2f})" if len(row.values) >= SEEDS else "")
