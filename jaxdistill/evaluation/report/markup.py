"""Build HTML from elements. All text is escaped unless it is `Markup`, so that escaping cannot be forgotten."""

import html
from collections.abc import Iterable
from typing import Any


class Markup(str):
    """A string that is valid HTML, and that `element` and `join` therefore do not escape.

    Formatting or concatenating it gives a plain `str`, which `element` and `join` do escape. So a mistake shows tags as
    text, but never injects HTML.
    """


def join(children: Iterable[Any]) -> Markup:
    """Concatenate values to one HTML string; values that are not `Markup` are converted to text and escaped."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children))


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """Return the HTML element `<tag name="value">children</tag>`; children that are not `Markup` are escaped.

    Args:
        tag: name of the element, such as "p".
        children: the content of the element.
        attributes: values of the attributes by name. A trailing underscore of a name is dropped: `class_` gives
            `class`.
    """
    pairs = "".join(f' {name.rstrip("_")}="{html.escape(str(value))}"' for name, value in attributes.items())
    return Markup(f"<{tag}{pairs}>{join(children)}</{tag}>")
