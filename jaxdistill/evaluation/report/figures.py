"""Draw the figures of a report as inline SVG, one plot each; the browser arranges the figures in one or two columns.

A model has the same colour and line style in every figure.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdistill.evaluation.report.drawing import svg
from jaxdistill.evaluation.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[list[int], list[float]]

# Okabe and Ito's colours for models, Tol's muted colours for terms: two distinct sets, both safe for the colour-blind.
STUDENT, CONTROL = "#D55E00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TERMS = ("#332288", "#CC6677", "#117733", "#AA4499", "#999933", "#44AA99", "#882255")
DASHES = ("-", "--", "-.", ":")

WIDE, TALL = (4.8, 3.1), (2.9, 3.5)
POINTS = 150  # largest number of points of a curve; a longer log is averaged in bins


class Style(NamedTuple):
    """The colour and matplotlib line style of a curve."""

    color: str
    linestyle: str


def network_styles(names: Iterable[str]) -> dict[str, Style]:
    """Choose a colour and line style for each model; the styles of "student" and "control" are always the same.

    The control is the same student trained without a teacher.

    Args:
        names: names of the models.
    """
    others = [name for name in dict.fromkeys(names) if name not in ("student", "control")]
    cycle = {name: Style(OTHERS[n % len(OTHERS)], DASHES[(2 + n // len(OTHERS)) % 4]) for n, name in enumerate(others)}
    return {"student": Style(STUDENT, "-"), "control": Style(CONTROL, "--"), **cycle}


def term_styles(names: Iterable[str]) -> dict[str, Style]:
    """Choose a colour and line style for each loss term.

    Different line styles keep two curves visible where they coincide, as constant weights often do.

    Args:
        names: names of the loss terms.
    """
    return {name: Style(TERMS[n % len(TERMS)], DASHES[n % 4]) for n, name in enumerate(dict.fromkeys(names))}


def curves(
    series: Mapping[str, Series], styles: Mapping[str, Style], label: str, log_beyond: float = math.inf
) -> Markup:
    """Draw values over training steps, with one curve for each name in `series`.

    Args:
        series: `(steps, values)` of each curve, by name.
        styles: colour and line style of each curve, by name.
        label: label of the vertical axis, with the unit.
        log_beyond: the vertical axis is logarithmic if all values are positive and `max / min` exceeds this factor.
    """

    def draw(figure: "Figure") -> None:
        axes = _plotted(figure, series, styles)
        axes.set(xlabel="optimiser step", ylabel=label)
        if _spans(series, log_beyond):
            _log_axis(axes)

    return svg(draw, _with_legend(WIDE, list(series)), f"{label} over optimiser steps: {', '.join(series)}")


def accuracy_curves(series: Mapping[str, Series], styles: Mapping[str, Style], label: str = "accuracy (%)") -> Markup:
    """Draw accuracies, or other shares in percent, over training steps, with one curve for each model.

    The vertical axis is logarithmic in the error (100 - accuracy), with high accuracies at the top, if the largest
    error is more than 5 times the smallest and no error is 0. On this axis, the distance from 90 to 95 % equals that
    from 50 to 75 %, because the error is halved in both cases.

    Args:
        series: `(steps, accuracies in percent)` of each model, by name.
        styles: colour and line style of each model, by name.
        label: label of the vertical axis.
    """
    errors = {name: (steps, [100 - value for value in values]) for name, (steps, values) in series.items()}

    def draw(figure: "Figure") -> None:
        stretched = _spans(errors, 5)
        axes = _plotted(figure, errors if stretched else series, styles)
        axes.set(xlabel="optimiser step", ylabel=label)
        if stretched:
            _log_axis(axes, lambda error, _: f"{100 - error:g}")
            axes.invert_yaxis()

    return svg(draw, _with_legend(WIDE, list(series)), f"{label} over optimiser steps: {', '.join(series)}")


def reliability(bins: Mapping[str, Sequence[float | None]], style: Style) -> Markup:
    """Draw a reliability diagram: accuracy against confidence, and below it a histogram of confidence.

    The area of a point is proportional to the number of examples behind it.

    Args:
        bins: the lists `confidence`, `accuracy` and `count`, with one value for each bin of confidence. An empty bin
            has the count 0, and None as confidence and accuracy.
        style: colour and line style of the model.
    """

    def draw(figure: "Figure") -> None:
        above, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        filled = [row for row in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True) if row[2]]
        confidence, accuracy, count = zip(*filled, strict=True) if filled else ((), (), ())
        above.plot((0, 1), (0, 1), color="#777777", linewidth=1, linestyle=":")
        above.vlines(confidence, confidence, accuracy, color=style.color, alpha=0.35, linewidth=3.5)
        sizes = [120 * n / max(count) + 4 for n in count]  # a bin of few examples is mostly noise
        above.plot(confidence, accuracy, color=style.color, linewidth=0.8, alpha=0.5)
        above.scatter(confidence, accuracy, s=sizes, color=style.color, zorder=3)
        above.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="accuracy")
        below.vlines(confidence, 0, [100 * n / sum(count) for n in count], color=style.color, linewidth=5)
        below.set(xlabel="confidence", ylabel="share (%)", ylim=(0, None))

    return svg(draw, TALL, "accuracy over confidence, and the share of examples at each confidence")


def _thinned(values: list[Any]) -> list[Any]:
    """Shorten a curve to at most `POINTS` values by averaging neighbours; an average that includes a NaN is NaN."""
    import numpy as np

    return [part.mean() for part in np.array_split(np.asarray(values), min(POINTS, len(values)))]


def _spans(series: Mapping[str, Series], factor: float) -> bool:
    """Return True if the finite values of all curves are positive and span more than `factor`."""
    finite = [value for _, values in series.values() for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > factor * min(finite)


def _plotted(figure: "Figure", series: Mapping[str, Series], styles: Mapping[str, Style]) -> "Axes":
    """Plot the curves, with a legend above them and steps written as 500, 20k, 1.5M; return the axes."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes = figure.subplots()
    for name, (steps, values) in series.items():
        marker = "o" if len(steps) <= 40 else ""
        axes.plot(_thinned(steps), _thinned(values), label=_short(name), marker=marker, **styles[name]._asdict())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(loc="outside upper center", ncols=_legend_columns(list(series)))
    return axes


def _legend_columns(names: list[str]) -> int:
    """Return the number of legend columns that fit side by side."""
    return min(len(names), 56 // (7 + max(len(_short(name)) for name in names)))


def _with_legend(size: tuple[float, float], names: list[str]) -> tuple[float, float]:
    """Increase the height of a figure for the rows of its legend."""
    width, height = size
    return width, height + 0.19 * (math.ceil(len(names) / _legend_columns(names)) - 1)


def _log_axis(axes: "Axes", form: Callable[[float, Any], str] = lambda value, _: f"{value:g}") -> None:
    """Make the vertical axis logarithmic, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(name: str, limit: int = 28) -> str:
    """Shorten a name to at most `limit` characters."""
    return name if len(name) <= limit else name[: limit - 1] + "…"
