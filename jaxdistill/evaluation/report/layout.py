"""Arrange the parts of a page: sections, figures with captions, and grids of cards."""

from jaxdistill.evaluation.report.markup import Markup, element


def section(title: str, content: Markup, note: str = "") -> Markup:
    """Return an HTML section with a heading, or an empty string if `content` is empty.

    Args:
        title: the heading.
        content: tables or figures.
        note: explanation between heading and content; empty for no explanation.
    """
    explanation = element("p", note, class_="note") if note else Markup()
    return element("section", element("h2", title), explanation, content) if content else Markup()


def figure(title: str, note: str, svg: Markup) -> Markup:
    """Return an HTML figure with its caption above: a title in bold, then a note."""
    return element("figure", element("figcaption", element("b", title), f" {note}"), svg)


def grid(*cards: Markup, small: bool = False) -> Markup:
    """Arrange figures or tables side by side where the page is wide enough; return an empty string without any.

    Args:
        cards: the figures or tables.
        small: whether to use narrow columns.
    """
    return element("div", *cards, class_="grid small" if small else "grid") if cards else Markup()
