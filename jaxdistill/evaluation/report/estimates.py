"""The figure of a study: every arm's seeds, their mean and its interval, on one axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxdistill.evaluation.report.drawing import svg
from jaxdistill.evaluation.report.figures import CONTROL, STUDENT
from jaxdistill.evaluation.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Estimate(NamedTuple):
    """One arm.

    name: of the arm
    values: of its seeds
    mean, low, high: the mean and its interval
    """

    name: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


def figure(rows: Sequence[Estimate], baseline: str, label: str, png: Path | None = None) -> Markup:
    """A row for each arm, from the top down, and a line down through the baseline's mean.

    The axis reaches as far as the seeds do: the interval of few seeds may be far wider than all of them, and is cut.

    Args:
        rows: the arms
        baseline: name of the arm that the others are read against
        label: of the axis, with its unit
        png: where the figure is written as pixels too
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
        seen = [value for row in rows for value in row.values]
        margin = 0.25 * (max(seen) - min(seen)) or 1.0
        axes.set(xlabel=label, xlim=(min(seen) - margin, max(seen) + margin))

    told = "; ".join(f"{row.name} {row.mean:.2f} ({row.low:.2f} to {row.high:.2f})" for row in rows)
    return svg(draw, (7.2, 1.0 + 0.3 * len(rows)), f"{label}, mean and 95 % interval: {told}", png)
