"""Draw a matplotlib figure as inline SVG, in a fixed style. Text stays text, so that it can be searched and copied."""

import html
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxdistill.evaluation.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxdistill",  # makes the ids of two equal figures equal
    "text.parse_math": False,  # a dollar sign in a name is not mathematics
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "font.size": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
}


def svg(
    draw: Callable[["Figure"], None], size: tuple[float, float], description: str, png: Path | None = None
) -> Markup:
    """Draw a matplotlib figure and return it as SVG.

    Args:
        draw: function that draws on an empty figure.
        size: width and height in inches.
        description: description of the figure for screen readers.
        png: file to which the figure is also written as PNG; None for no such file.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.style.context(["default", STYLE]):
        warnings.filterwarnings("ignore", "Glyph")  # the browser has glyphs that matplotlib's font lacks
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        if png:
            figure.savefig(png, dpi=200, metadata={"Software": None})
    text = buffer.getvalue()
    # Remove the XML prologue, and the ids of groups, which repeat between figures; other ids are hashes of content.
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1))
