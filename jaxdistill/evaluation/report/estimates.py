"""Draw the figure of a study: for every arm the seeds, their mean and its confidence interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxdistill.evaluation.report.drawing import svg
from jaxdistill.evaluation.report.figures import CONTROL, STUDENT
from jaxdistill.evaluation.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Estimate(NamedTuple):
    """The results of one arm.

    name: name of the arm
    values: one value for each seed
    mean, low, high: the mean and its 95 % interval
    """

    name: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


def figure(rows: Sequence[Estimate], baseline: str, label: str, png: Path | None = None) -> Markup:
    """Draw a row for each arm, and a vertical line through the mean of the baseline.

    The axis spans the values of all seeds. The interval of few seeds can be much wider, and is cut.

    Args:
        rows: the arms
        baseline: name of the arm that the others are compared with
        label: label of the axis, with its unit
        png: file to which the figure is also written as PNG
    """

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for place, row in enumerate(rows):
            color = CONTROL if row.name == baseline else STUDENT
            axes.plot(row.values, [place] * len(row.values), "o", color=color, alpha=0.4, markersize=3.5)
            axes.plot((row.low, row.high), (place, place), color=color, linewidth=2)
            axes.plot(row.mean, place, "D", color=color, markersize=6)
            if row.name == baseline:
                axes.axvline(row.mean, color=color, linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.invert_yaxis()
        values = [value for row in rows for value in row.values]
        margin = 0.25 * (max(values) - min(values)) or 1.0
        axes.set(xlabel=label, xlim=(min(values) - margin, max(values) + margin))

    summary = "; ".join(f"{row.name} {row.mean:.2f} ({row.low:.2f} to {row.high:.2f})" for row in rows)
    return svg(draw, (7.2, 1.0 + 0.3 * len(rows)), f"{label}, mean and 95 % interval: {summary}", png)
