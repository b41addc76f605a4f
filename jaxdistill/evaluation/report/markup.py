"""Build HTML from elements. All text is escaped unless it is `Markup`, so that escaping cannot be forgotten."""

import html
from collections.abc import Iterable
from typing import Any


class Markup(str):
    """A string that is valid HTML.

    Formatting or concatenation gives a plain `str`, which is escaped again when it becomes a child. A mistake therefore
    shows tags as text and never executes them.
    """


def join(children: Iterable[Any]) -> Markup:
    """Concatenate children; escape those that are not `Markup`."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children))


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """Return `<tag name="value">children</tag>`; a trailing underscore of a name is dropped, as in `class_`."""
    pairs = "".join(f' {name.rstrip("_")}="{html.escape(str(value))}"' for name, value in attributes.items())
    return Markup(f"<{tag}{pairs}>{join(children)}</{tag}>")
