"""One figure as inline SVG, in our style whatever the user's is. Text stays text, to be searched and copied."""

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
    "svg.hashsalt": "jaxdistill",  # the same run writes the same page
    "text.parse_math": False,  # a dollar in a name is a dollar
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


def svg(draw: Callable[["Figure"], None], size: tuple[float, float], told: str, png: Path | None = None) -> Markup:
    """Runs `draw` on an empty figure.

    Args:
        draw: what is shown
        size: width and height in inches
        told: the figure in words, for who cannot see it
        png: where it is written as pixels too
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.style.context(["default", STYLE]):
        warnings.filterwarnings("ignore", "Glyph")  # the browser has fonts for what matplotlib's font lacks
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        if png:
            figure.savefig(png, dpi=200, metadata={"Software": None})
    text = buffer.getvalue()
    # Without the XML prologue, and without the names of groups, which repeat; other ids are hashes of what they name.
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{html.escape(told)}"', 1))
