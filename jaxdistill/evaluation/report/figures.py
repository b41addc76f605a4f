"""The figures of the page, each one panel as inline SVG: the browser lays panels out, two abreast or one on a phone.

One network has one colour and one dash in every figure. Text stays text, so that it can be searched and copied.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdistill.evaluation.report.drawing import svg
from jaxdistill.evaluation.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[list[int], list[float]]

# Okabe and Ito's colours for networks, Tol's muted ones for terms: both safe for the colour-blind, and unlike.
STUDENT, CONTROL = "#D55E00", "#0072B2"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TERMS = ("#332288", "#CC6677", "#117733", "#AA4499", "#999933", "#44AA99", "#882255")
DASHES = ("-", "--", "-.", ":")

WIDE, TALL = (4.8, 3.1), (2.9, 3.5)
POINTS = 150  # a curve on the page has no more: a long log is averaged in bins


class Style(NamedTuple):
    """How the curve of one name looks."""

    color: str
    linestyle: str


def network_styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each network: student and control always the same, the others in order."""
    others = [name for name in dict.fromkeys(names) if name not in ("student", "control")]
    cycle = {name: Style(OTHERS[n % len(OTHERS)], DASHES[(2 + n // len(OTHERS)) % 4]) for n, name in enumerate(others)}
    return {"student": Style(STUDENT, "-"), "control": Style(CONTROL, "--"), **cycle}


def term_styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each term of the objective; dashes, because two weights often lie on each other."""
    return {name: Style(TERMS[n % len(TERMS)], DASHES[n % 4]) for n, name in enumerate(dict.fromkeys(names))}


def curves(
    series: Mapping[str, Series], styles: Mapping[str, Style], label: str, log_beyond: float = math.inf
) -> Markup:
    """Values over steps, one curve a name.

    Args:
        series: `(steps, values)` by name
        styles: by name
        label: of the vertical axis, with its unit
        log_beyond: the axis is logarithmic where all values are positive and span more than this factor
    """

    def draw(figure: "Figure") -> None:
        axes = _plotted(figure, series, styles)
        axes.set(xlabel="optimiser step", ylabel=label)
        if _spans(series, log_beyond):
            _log_axis(axes)

    return svg(draw, _with_legend(WIDE, list(series)), f"{label} over optimiser steps: {', '.join(series)}")


def accuracy_curves(series: Mapping[str, Series], styles: Mapping[str, Style]) -> Markup:
    """Accuracies in percent over steps, stretched towards 100 % where curves come near it.

    From 90 to 95 % is half of the errors, and as far as from 50 to 75 %: a logarithmic axis of the error, upside down.
    """
    errors = {name: (steps, [100 - value for value in values]) for name, (steps, values) in series.items()}

    def draw(figure: "Figure") -> None:
        stretched = _spans(errors, 5)
        axes = _plotted(figure, errors if stretched else series, styles)
        axes.set(xlabel="optimiser step", ylabel="accuracy (%)")
        if stretched:
            _log_axis(axes, lambda error, _: f"{100 - error:g}")
            axes.invert_yaxis()

    return svg(draw, _with_legend(WIDE, list(series)), f"accuracy (%) over optimiser steps: {', '.join(series)}")


def reliability(bins: Mapping[str, list[float]], style: Style) -> Markup:
    """Accuracy over confidence by bin, above the share of examples in each bin."""

    def draw(figure: "Figure") -> None:
        above, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        filled = [row for row in zip(bins["confidence"], bins["accuracy"], bins["count"], strict=True) if row[2]]
        confidence, accuracy, count = zip(*filled, strict=True) if filled else ((), (), ())
        above.plot((0, 1), (0, 1), color="#777777", linewidth=1, linestyle=":")
        above.vlines(confidence, confidence, accuracy, color=style.color, alpha=0.35, linewidth=3.5)
        above.plot(confidence, accuracy, color=style.color, marker="o", linewidth=1.2)
        above.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="accuracy")
        below.vlines(confidence, 0, [100 * n / sum(count) for n in count], color=style.color, linewidth=5)
        below.set(xlabel="confidence", ylabel="share (%)", ylim=(0, None))

    return svg(draw, TALL, "accuracy over confidence, and the share of examples at each confidence")


def _thinned(values: list[Any]) -> list[Any]:
    """At most `POINTS` values, each the mean of its neighbours: noise goes, a NaN stays."""
    import numpy as np

    return [part.mean() for part in np.array_split(np.asarray(values), min(POINTS, len(values)))]


def _spans(series: Mapping[str, Series], factor: float) -> bool:
    """Whether the finite values of all curves are positive and span more than `factor`."""
    finite = [value for _, values in series.values() for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > factor * min(finite)


def _plotted(figure: "Figure", series: Mapping[str, Series], styles: Mapping[str, Style]) -> "Axes":
    """The curves on fresh axes, under a legend that covers no data; steps as 500, 20k, 1.5M."""
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
    """As many as fit beside each other."""
    return min(len(names), 56 // (7 + max(len(_short(name)) for name in names)))


def _with_legend(size: tuple[float, float], names: list[str]) -> tuple[float, float]:
    """The size of a figure whose legend takes no room from the data, however many names it has."""
    width, height = size
    return width, height + 0.19 * (math.ceil(len(names) / _legend_columns(names)) - 1)


def _log_axis(axes: "Axes", form: Callable[[float, Any], str] = lambda value, _: f"{value:g}") -> None:
    """A logarithmic vertical axis with plain numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.yaxis.set_major_formatter(form)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _short(name: str, limit: int = 28) -> str:
    """A name that leaves room for the data."""
    return name if len(name) <= limit else name[: limit - 1] + "…"
