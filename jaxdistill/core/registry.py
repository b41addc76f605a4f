"""Registries of factories (of losses, models, schedules, ...), and the spec strings by which a config names them.

A spec string is the name of a registered factory with literal arguments: `"kd(temperature=4.0)"`,
`"cosine(start=0.9, end=0.1)"`, `"resnet(widths=(16, 32))"`. Specs may be nested:
`"kd(temperature=linear(start=8, end=2))"`. `spec.py` parses them. A spec is one string, so it is one value on the
command line and one axis of a sweep.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from jaxdistill.core.errors import ConfigError, short_repr, suggest, user_location
from jaxdistill.core.spec import Spec, parse


def _matches(value: Any, annotation: Any) -> bool:
    """Return True if a literal from a spec string fits the type annotation of a factory's parameter.

    An annotation that is not made of bool, int, float, str, None, tuples, literals and unions accepts every literal.
    """
    if isinstance(value, Spec):  # a nested spec where a literal is expected
        return False
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(annotation))
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if origin is tuple:
        args = typing.get_args(annotation)
        if isinstance(value, tuple) and args[-1] is ...:
            args = args[:1] * len(value)
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_matches, value, args))
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation) if annotation in (bool, str) else True


def _describe(annotation: Any) -> str:
    """Return a type annotation as text for an error message, without the names of modules."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_describe, args))
    if origin is tuple and typing.get_origin(args[0]) is typing.Literal:
        return f"a tuple of {' or '.join(map(repr, typing.get_args(args[0])))}"
    if origin is tuple:
        return f"tuple[{', '.join('...' if item is ... else _describe(item) for item in args)}]"
    if annotation in (None, types.NoneType):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else re.sub(r"(\w+\.)+(?=\w)", "", str(annotation))


def _full_name(annotation: Any) -> str:
    return f"{getattr(annotation, '__module__', '')}.{getattr(annotation, '__qualname__', '')}"


def _mismatch(value: Any, annotation: Any) -> str:
    """Return the end of an error message about a literal that does not fit a parameter's type annotation."""
    args = typing.get_args(annotation)
    is_tuple = isinstance(value, tuple) and not isinstance(value, Spec)
    if is_tuple and typing.get_origin(annotation) is tuple and args[-1] is ...:
        wrong, names = next(item for item in value if not _matches(item, args[0])), typing.get_args(args[0])
        if typing.get_origin(args[0]) is typing.Literal and all(isinstance(name, str) for name in (wrong, *names)):
            return f"unknown {wrong!r}. {suggest(wrong, names)}"
    if typing.get_origin(annotation) is tuple and not isinstance(value, tuple | Spec) and args[-1] is ...:
        return f"expected {_describe(annotation)}, such as ({value!r},)."
    return f"expected {_describe(annotation)}."


def list_arguments(parameters: Mapping[str, inspect.Parameter]) -> str:
    """Return the parameters of a factory as text, 'NAME: TYPE, NAME=DEFAULT'; empty if there are none."""

    def text(parameter: inspect.Parameter) -> str:
        if parameter.default is not parameter.empty:
            return f"{parameter.name}={parameter.default!r}"
        kind = "" if parameter.annotation is parameter.empty else f": {_describe(parameter.annotation)}"
        return parameter.name + kind

    return ", ".join(map(text, parameters.values()))


HINTS = {  # (kind of part, argument that users expect) -> where it is
    ("optimizer", "lr"): "The learning rate is the config key 'rate'. ",
    ("optimizer", "learning_rate"): "The learning rate is the config key 'rate'. ",
    ("loss", "weight"): "The weight is a config key beside 'term'. ",
    ("loss", "reduction"): "The reduction is a config key beside 'term'. ",
    ("quantization", "bits"): "The bits are those of weights=4 and inputs=8. ",
}
Conversions = Mapping[Any, Callable[[Any, str], Any]]  # an annotation -> `(literal, path) -> value`

LITERAL_TYPES = (int, float, complex, bool, bytes, tuple, dict, set, type(None), type(...))  # of a spec, but no text
BUILDERS: dict[str, "Registry"] = {}  # full name of a type -> the registry whose factories build it


class Registry:
    """The registered factories (functions that build an object) of one kind, such as all losses, by function name.

    Args:
        kind: what the factories build, such as "loss", for error messages.
        check: function that is called with the arguments of a factory by name, and raises a ValueError for an argument
            that no factory of this kind can take.
        built: full name of the type that the factories build; a parameter of this type takes the spec of another one.
    """

    def __init__(self, kind: str, check: Callable[[Mapping[str, Any]], None] = lambda arguments: None, built: str = ""):
        self.kind, self._check, self._built = kind, check, built
        self.factories: dict[str, Callable[..., Any]] = {}
        if built:
            BUILDERS[built] = self

    def register[F: Callable[..., Any]](self, factory: F) -> F:
        """Add a factory under the name of its function; can be used as a decorator.

        Raises:
            ValueError: another factory has that name.
        """
        name = factory.__name__
        known = self.factories.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (factory.__module__, factory.__qualname__):
            raise ValueError(f"{self.kind} {name!r} is registered already, by {known.__module__}")
        self.factories[name] = factory
        return factory

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.factories[name]

    def __contains__(self, name: str) -> bool:
        return name in self.factories

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.factories))

    def build(self, spec: str | Spec, path: str, convert: Conversions = MappingProxyType({})) -> Any:
        """Call the factory that a spec names with the arguments of the spec, and return the object that is built.

        Args:
            spec: a spec string such as `"kd(temperature=4.0)"`, or a parsed spec.
            path: key of the config with the spec, such as `objective.kd.term`, for error messages.
            convert: `{annotation: (argument, config key) -> value}`, converters of the arguments; see `bind`.

        Raises:
            ConfigError: unknown name, misspelt or missing argument, wrong type; or the factory raises a ValueError or
                TypeError.
        """
        factory, bound = self.bind(spec, path, convert)
        try:
            self._check(bound.arguments)
            part = factory(*bound.args, **bound.kwargs)
        except ConfigError as error:
            raise error if error.path else ConfigError(path, error.message) from None
        except (ValueError, TypeError) as error:
            raise ConfigError(path, f"{factory.__name__}: {error}{user_location(error)}") from error
        made = {_full_name(kind) for kind in type(part).__mro__}
        if part is None or (self._built and self._built not in made):
            wanted = f"{self._built.rpartition('.')[2]}, see {self._built}" if self._built else f"a {self.kind}"
            problem = f"{factory.__name__} in {factory.__module__} returned {short_repr(part)}"
            raise ConfigError(path, f"{problem}; return {wanted}.")
        return part

    def bind(
        self, spec: str | Spec, path: str, convert: Conversions = MappingProxyType({})
    ) -> tuple[Callable[..., Any], inspect.BoundArguments]:
        """Return the factory that a spec names, and the spec's arguments bound to the factory's parameters.

        Args:
            spec: a spec string such as `"kd(temperature=4.0)"`, or a parsed spec.
            path: key of the config with the spec, such as `objective.kd.term`, for error messages.
            convert: `{annotation: (argument, config key) -> value}`. The argument (or default) of every parameter with
                one of these annotations is converted: for example, a number or `cosine(...)` becomes a schedule.

        Raises:
            ConfigError: unknown name, misspelt or missing argument, wrong type.
        """
        text = spec if isinstance(spec, str) else repr(spec)
        spec = parse(spec, path) if isinstance(spec, str) else spec
        if spec.name not in self.factories:
            raise ConfigError(path, f"unknown {self.kind} {spec.name!r}. {suggest(spec.name, self.factories)}")
        factory = self.factories[spec.name]
        signature = inspect.signature(factory, eval_str=True)
        accepts_any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
        arguments = {name: each for name, each in signature.parameters.items() if name not in spec.added}
        for name in (*spec.kwargs, *spec.added):
            if name not in signature.parameters and not accepts_any_name:
                cure = HINTS.get((self.kind, name), "") + suggest(name, arguments)
                raise ConfigError(path, f"{self.kind} {spec.name!r} has no argument {name!r}. {cure}")
        try:
            bound = signature.bind(*spec.args, **{**spec.kwargs, **spec.added})
        except TypeError as error:
            raise ConfigError(path, f"{text!r}: {error}. Arguments: {list_arguments(arguments) or 'none'}.") from None
        for name, value in bound.arguments.items():
            annotation, where = signature.parameters[name].annotation, f"{path}: {spec.name}({name}=...)"
            builder = BUILDERS.get(_full_name(annotation))  # the argument is a part itself, such as a loss in a loss
            if builder and name not in spec.added and type(value) in LITERAL_TYPES:
                cure = f"Give the spec string of one of {', '.join(builder)}"
                raise ConfigError(where, f"{value!r} is no {builder.kind}. {cure}.")
            if annotation in convert:
                bound.arguments[name] = convert[annotation](value, where)
            elif builder is self:
                bound.arguments[name] = self.build(value, where)
            elif not _matches(value, annotation):
                raise ConfigError(path, f"{spec.name}({name}={value!r}): {_mismatch(value, annotation)}")
        for name, parameter in signature.parameters.items():
            if name not in bound.arguments and parameter.annotation in convert:
                bound.arguments[name] = convert[parameter.annotation](
                    parameter.default, f"{path}: {spec.name}({name}=...)"
                )
        return factory, bound


LARGEST, MOST_LAYERS = 2**31 - 1, 2048
POSITIVE = {"depth", "depths", "width", "widths", "ffn", "heads", "kv_heads", "head_size", "patch"}
POSITIVE |= {"categories", "channels", "vocabulary", "positions"}


def _possible_sizes(arguments: Mapping[str, Any]) -> None:
    """Raise a ValueError if an argument of a model factory is an impossible size, such as a stride of 0.

    Sizes beyond 2^31 and models of more than 2,048 layers are refused, too. Layers are built one by one, so millions of
    them would take too much time and memory before anything is compiled.
    """
    for name, value in arguments.items():
        numbers = value if isinstance(value, tuple) else (value,)
        sizes = [number for number in numbers if isinstance(number, int) and not isinstance(number, bool)]
        if name == "epsilon" and not value > 0:
            raise ValueError(f"epsilon={value!r:.60} must be positive")
        for size in sizes:
            if abs(size) > LARGEST:
                raise ValueError(f"{name}={value!r:.60} is too large; give at most {LARGEST}")
            least = 1 if name in POSITIVE or "stride" in name else 0 if name == "classes" else -LARGEST
            if size < least:  # 0 classes: a model without a head
                raise ValueError(f"{name}={value!r:.60} must {'be positive' if least == 1 else 'not be negative'}")
        layers = sum(sizes) if re.search("depth|blocks", name) else len(numbers)
        if layers > MOST_LAYERS:
            raise ValueError(f"{name} asks for {layers} layers; give at most {MOST_LAYERS}")


losses = Registry("loss", built="jaxdistill.core.interfaces.Term")
fusions = Registry("fusion", built="jaxdistill.core.interfaces.Fusion")
steps = Registry("step", built="jaxdistill.core.interfaces.Step")
models = Registry("model", _possible_sizes, built="jaxdistill.core.interfaces.Model")
schedules = Registry("schedule")
optimizers = Registry("optimizer")
datasets = Registry("data set")
transforms = Registry("transform")
selections = Registry("selection")
orders = Registry("order")
caches = Registry("cache")
placements = Registry("placement")
tokenizations = Registry("tokenization")
quantizers = Registry("quantization")
cuts = Registry("cut")
masks = Registry("pruning")
exporters = Registry("export format")
devices = Registry("device")
