"""HTML built from elements, so that escaping is a law and not a habit: text is escaped unless it is `Markup`."""

import html
from collections.abc import Iterable
from typing import Any


class Markup(str):
    """A string that is HTML already.

    Formatting or adding to one gives a plain `str`, which is escaped again when it becomes a child: forgetting shows
    tags on the page, never runs them.
    """


def join(children: Iterable[Any]) -> Markup:
    """The children one after another, escaped where they are not `Markup`."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children))


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """`<tag name="value">children</tag>`; a trailing underscore is dropped, as in `class_`."""
    pairs = "".join(f' {name.rstrip("_")}="{html.escape(str(value))}"' for name, value in attributes.items())
    return Markup(f"<{tag}{pairs}>{join(children)}</{tag}>")
