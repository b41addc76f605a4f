"""Parse spec strings such as `"kd(temperature=4.0)"`: the name of a registered factory with literal arguments.

Specs may be nested: `"kd(temperature=linear(start=8, end=2))"`. They are parsed with `ast` and never evaluated.
"""

import ast
import math
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxdistill.core.errors import ConfigError

SMALLEST_NUMBER, LARGEST_NUMBER = 1e-30, 1e30  # products of others leave the range of float32, after compilation


class Spec(NamedTuple):
    """A parsed spec string such as `"kd(temperature=4.0)"`.

    name: name of a registered factory
    args: positional arguments, literals or nested specs
    kwargs: keyword arguments, literals or nested specs
    added: keyword arguments that the program adds, any objects; error messages leave them out
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    added: Mapping[str, Any] = MappingProxyType({})

    def __repr__(self) -> str:
        """Return the spec as a config writes it, for error messages."""
        arguments = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{self.name}({', '.join(arguments)})"


def out_of_range(number: float) -> str:
    """Return an error message if a number is too large or too small to compute with in float32; else an empty text."""
    if number == 0 or SMALLEST_NUMBER <= abs(number) <= LARGEST_NUMBER:
        return ""
    extreme, limits = ("large", "from -1e30 to 1e30") if abs(number) > 1 else ("small", "of at least 1e-30, or 0")
    return f"{number!r:.24} is too {extreme} to compute with in float32. Give a number {limits}."


def parse(text: str, path: str) -> Spec:
    """Parse a spec string, `name` or `name(literal, key=literal)`, without evaluating anything.

    Args:
        text: the name of a registered factory with literal arguments, such as `"kd(temperature=4.0)"`.
        path: key of the config with the spec string, such as `objective.kd.term`, for the error message.

    Raises:
        ConfigError: the text is not a spec string.
    """

    def literal(node: ast.expr) -> Any:
        if isinstance(node, ast.Call):
            return call(node)
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(literal(item) for item in node.elts)
        number = node.operand if isinstance(node, ast.UnaryOp) else node
        if isinstance(number, ast.Name) and number.id.lower() in ("nan", "inf", "infinity"):
            raise ConfigError(path, f"{text.strip()!r:.80}: {number.id} is no number. Give a finite one.")
        value = ast.literal_eval(node)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        if isinstance(value, int | float) and (wrong := out_of_range(value)):
            raise ConfigError(path, f"{text.strip()!r:.80}: {wrong}")
        return value

    def call(node: ast.expr) -> Spec:
        if isinstance(node, ast.Name):
            return Spec(node.id, (), {})
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        names = [keyword.arg for keyword in node.keywords]
        if None in names:  # `**kwargs`
            raise ValueError
        if twice := next((name for name in names if names.count(name) > 1), None):  # `ast` allows it
            raise ConfigError(path, f"{text.strip()!r:.200}: the argument {twice!r} is given twice. Give it once.")
        kwargs = {keyword.arg: literal(keyword.value) for keyword in node.keywords if keyword.arg}
        return Spec(node.func.id, tuple(literal(arg) for arg in node.args), kwargs)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)  # "\d" would be read as it stands, with a warning
            return call(ast.parse(text.strip(), mode="eval").body)
    except ConfigError:
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        cure = "Write a registered name with literal arguments, like name(key=1.0, file='a.csv'), words in quotes; "
        cure += "specs are parsed, never run."
        raise ConfigError(path, f"{text!r:.200} is not a spec string{_where(text.strip(), error)}. {cure}") from None


def nested_specs(spec: Spec) -> Iterator[Spec]:
    """Yield a parsed spec string and all specs nested in its arguments, at any depth.

    A tuple among the arguments is yielded as a spec without a name, whose `args` are the items. So the `args` and
    `kwargs` of the results together hold every argument that occurs anywhere in a spec string.
    """
    yield spec
    for value in (*spec.args, *spec.kwargs.values()):
        if isinstance(value, Spec):
            yield from nested_specs(value)
        elif isinstance(value, tuple):
            yield from nested_specs(Spec("", value, {}))


def _where(text: str, error: Exception) -> str:
    """Return the reason and place of a syntax error in a spec string, as text; empty if they are unknown."""
    if not isinstance(error, SyntaxError) or error.lineno != 1 or not error.offset:
        return ""
    reason, rest = (error.msg or "").replace(". Perhaps", ", perhaps").rstrip("?"), text[error.offset - 1 :]
    return f" ({reason}, at {rest[:30]!r})" if rest else f" ({reason})"
