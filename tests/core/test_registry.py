"""Tests of registries and spec strings: a spec is parsed, never run, and errors name its path, value and cure."""

import sys
from collections.abc import Callable
from typing import Literal

import examples
import pytest
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import Registry
from jaxdistill.core.schedules import Scalar, Schedule
from jaxdistill.core.spec import Spec, parse


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("kd", Spec("kd", (), {})),
        ("  kd()  ", Spec("kd", (), {})),
        ("kd(4)", Spec("kd", (4,), {})),
        ("kd(temperature=-4.5)", Spec("kd", (), {"temperature": -4.5})),
        ("f('a', b=True, c=None)", Spec("f", ("a",), {"b": True, "c": None})),
        ("f(a=(1, 2), b=[3, 4], c=())", Spec("f", (), {"a": (1, 2), "b": (3, 4), "c": ()})),
        ("f(a=((1, -1), (2, -2)))", Spec("f", (), {"a": ((1, -1), (2, -2))})),
        (
            "kd(temperature=linear(start=8, end=2))",
            Spec("kd", (), {"temperature": Spec("linear", (), {"start": 8, "end": 2})}),
        ),
        ("f(g(h(1)), (g(2),))", Spec("f", (Spec("g", (Spec("h", (1,), {}),), {}), (Spec("g", (2,), {}),)), {})),
    ],
)
def test_names_with_literal_arguments_are_specs(text, spec):
    assert parse(text, "objective") == spec


CODE = [
    "",
    "4",
    "'kd'",
    "kd(temperature=t)",
    "kd(temperature=1 + 1)",
    "kd(temperature=9**9**9)",
    "kd(temperature=1e999)",
    "kd(**{'temperature': 1})",
    "kd(*(1, 2))",
    "jaxdistill.losses.kd()",
    "kd().apply",
    "kd(temperature=os.environ)",
    "kd(temperature=os.system('touch ran'))",
    "os.system('touch ran')",
    "kd(temperature=(lambda: open('ran', 'w'))())",
    "(lambda: open('ran', 'w'))()",
    "lambda: 0",
    "kd(1)(2)",
    "kd[0]",
    "kd(temperature=[t for t in (1, 2)])",
    "kd(temperature=f'{open}')",
    "kd(temperature=1 if True else 2)",
    "kd(temperature := 1)",
    "kd(temperature={**{}})",
    "kd; open('ran', 'w')",
    "import os",
    "x = 1",
    "kd(\0)",
    "kd(",
    "kd('\\d')",
    "await kd",
    "kd" * 50_000 + "!",
    "(" * 5_000 + ")" * 5_000,
    "kd(" * 5_000 + ")" * 5_000,
    "kd(x=" + "[" * 5_000 + "]" * 5_000 + ")",
    "kd(x=" + "-" * 50_000 + "1)",
    "kd" + ".a" * 50_000,
    "kd(x=1" + "+1" * 50_000 + ")",
    "kd(x=" + "9" * 10_000 + ")",
]


@pytest.mark.parametrize("text", CODE, ids=lambda text: text[:40])
def test_anything_else_is_refused_and_never_evaluated(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"objective.kd: .*is not a spec string"):
        parse(text, "objective.kd")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["__import__('os')", "open('ran', 'w')", "exec('x = 1')", "print(1)", "kd(temperature=exec('1'))"]
)
def test_a_function_of_python_is_no_part(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"objective.*unknown (loss|schedule)"):
        build_loss(text)
    assert not list(tmp_path.iterdir())


parts = Registry("part")


@parts.register
def gate(
    width: int,
    rate: float = 0.1,
    kind: Literal["soft", "hard"] = "soft",
    sizes: tuple[int, ...] = (),
    *,
    on: bool = True,
):
    if width < 1:
        raise ValueError(f"width must be positive; got {width}")
    return (width, rate, kind, sizes, on)


@parts.register
def choose(colours: tuple[Literal["red", "green"], ...], build: Callable[[Schedule], Schedule], warm: Scalar = 2.0):
    return colours, build, warm


@parts.register
def pair(both: tuple[int, str], either: int | str | None = None, warm: Scalar = 2.0, free=None):
    return both, either, warm, free


def test_a_part_is_built_from_its_spec():
    assert parts.build("gate(3)", "x") == (3, 0.1, "soft", (), True)
    assert parts.build("gate(width=3, rate=1, kind='hard', sizes=(1, 2), on=False)", "x") == (
        3,
        1,
        "hard",
        (1, 2),
        False,
    )
    assert parts.build(Spec("gate", (), {"width": 4}), "x")[0] == 4
    assert parts.build("pair((1, 'a'), free={1: 2})", "x") == ((1, "a"), None, 2.0, {1: 2})


def test_arguments_of_a_convertible_kind_are_converted_with_their_path_and_defaults_too():
    seen = []
    convert = {Scalar: lambda value, path: seen.append((value, path)) or "converted"}
    assert parts.build("pair((1, 'a'), warm=hot(1))", "x", convert)[2] == "converted"
    assert parts.build("pair((1, 'a'))", "x", convert)[2] == "converted"
    assert seen == [(Spec("hot", (1,), {}), "x: pair(warm=...)"), (2.0, "x: pair(warm=...)")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gatee(3)", "unknown part 'gatee'. Did you mean 'gate'? Known: choose, gate, pair."),
        ("q", "unknown part 'q'. Known: choose, gate, pair."),
        ("gate()", "missing a required argument: 'width'"),
        ("gate", "x: 'gate': missing a required argument: 'width'. Arguments: width: int, rate=0.1, kind='soft', si"),
        (
            "choose()",
            "Arguments: colours: a tuple of 'red' or 'green', build: Callable[[Schedule], Schedule], warm=2.0.",
        ),
        (Spec("gate", (), {"on": True}), "'gate(on=True)': missing a required argument: 'width'. Arguments: width: "),
        (Spec("gate", (), {"on": True}, {"rate": 0.5}), "'gate(on=True)': missing a required argument: 'width'."),
        (Spec("gate", (), {}, {"rate": 0.5}), "Arguments: width: int, kind='soft', sizes=(), on=True."),
        ("choose(colours=('grey', 'red'))", "missing a required argument: 'build'"),
        ("choose(('rde',), 1)", "choose(colours=('rde',)): unknown 'rde'. Did you mean 'red'? Known: green, red."),
        ("choose(('red', 3), 1)", "choose(colours=('red', 3)): expected a tuple of 'red' or 'green'."),
        ("choose('red', 1)", "choose(colours='red'): expected a tuple of 'red' or 'green', such as ('red',)."),
        ("choose(red(), 1)", "choose(colours=red()): expected a tuple of 'red' or 'green'."),
        ("gate(other(g(1), k=(2, h())))", "gate(width=other(g(1), k=(2, h()))): expected int."),
        ("gate(3, widht=4)", "part 'gate' has no argument 'widht'. Did you mean 'width'?"),
        ("gate(3, width=4)", "multiple values for argument 'width'"),
        ("gate(1, 2.0, 'soft', (), True)", "too many positional arguments"),
        ("gate('3')", "gate(width='3'): expected int."),
        ("gate(3.0)", "gate(width=3.0): expected int."),
        ("gate(True)", "gate(width=True): expected int."),
        ("gate(3, rate='fast')", "gate(rate='fast'): expected float."),
        ("gate(3, rate=False)", "gate(rate=False): expected float."),
        ("gate(3, rate=None)", "gate(rate=None): expected float."),
        ("gate(3, kind='loud')", "gate(kind='loud'): expected one of 'soft', 'hard'."),
        ("gate(3, sizes=4)", "gate(sizes=4): expected tuple[int, ...], such as (4,)."),
        ("gate(3, sizes=(1, 'a'))", "gate(sizes=(1, 'a')): expected tuple[int, ...]."),
        ("gate(3, on=1)", "gate(on=1): expected bool."),
        ("gate(0)", "gate: width must be positive; got 0"),
        ("gate(width=other(1))", "expected int."),
        ("pair((1, 2))", "pair(both=(1, 2)): expected tuple[int, str]."),
        ("pair((1, 'a', 2))", "pair(both=(1, 'a', 2)): expected tuple[int, str]."),
        ("pair((1, 'a'), either=1.5)", "expected int | str | None."),
    ],
)
def test_a_wrong_spec_is_told_with_its_path_and_its_cure(text, problem):
    with pytest.raises(ConfigError) as told:
        parts.build(text, "x")
    message = str(told.value)
    assert message.startswith("x: ") and problem in message
    assert "->" not in message and "jaxdistill." not in message and "typing." not in message


def test_a_layer_map_of_triples_or_words_is_refused():
    for layers in ("((1, 2, 3),)", "((1, 'a'),)", "1", "(1, 2)"):
        with pytest.raises(ConfigError, match=r"expected str \| tuple"):
            build_loss(f"hidden(layers={layers})")


def test_two_parts_cannot_share_a_name_but_a_module_may_be_read_twice():
    local = Registry("part")

    def gate():
        return 1

    local.register(gate)
    local.register(gate)
    with pytest.raises(ValueError, match=r"part 'gate' is registered already, by .*test_registry"):
        local.register(parts["gate"])


def test_a_registry_lists_its_names_in_order():
    assert list(parts) == ["choose", "gate", "pair"]
    assert "gate" in parts and "door" not in parts


def test_every_part_is_documented_and_its_arguments_are_annotated():
    import inspect

    for kind in examples.TABLES:
        for name, factory in getattr(registry, kind).factories.items():
            assert factory.__doc__, name
            for parameter in inspect.signature(factory).parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, f"{kind} {name}({parameter.name}=)"


def test_a_deep_spec_leaves_the_recursion_limit_alone():
    before = sys.getrecursionlimit()
    with pytest.raises(ConfigError):
        parse("kd(" * 5_000 + ")" * 5_000, "x")
    assert sys.getrecursionlimit() == before
