"""Fuzz tests of whole configs: each is accepted, or refused in one line."""

import inspect
import time

import hypothesis
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.spec import parse
from jaxdistill.run import failures
from jaxdistill.run.config import iter_keys, make, override
from jaxdistill.run.distill import check_config
from jaxdistill.run.own_parts import REGISTRIES
from jaxdistill.run.schema import SCHEMA, OpenSection

SECONDS = 10  # limit for accepting or refusing a config
EXTREMES = [0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.0, 0.5, 1.0, 1e-300, 1e300]
ODD_FLOATS = [float("inf"), float("-inf"), float("nan")]
TEXTS = [
    "",
    " ",
    "kd",
    "ä",
    "\u202e",
    "\0",
    "a" * 5000,
    "../x",
    "~",
    "{}",
    "%s",
    "(((((",
    "None",
    "1e999",
    "train[",
    "🙂",
]
NOT_TRIED = {"pretrained", "processed"}  # these read from the Hugging Face hub

numbers = st.sampled_from(EXTREMES) | st.integers(-5, 300) | st.floats(-3, 3)
literals = st.recursive(
    numbers | st.sampled_from(["None", "True", "False", "'x'", "''", "'uniform'", "'last'", "nan", "inf"]),
    lambda inner: st.lists(inner, max_size=3).map(lambda xs: f"({', '.join(map(str, xs))}{',' * (len(xs) == 1)})"),
    max_leaves=4,
)


@st.composite
def specs(draw, kind: str = ""):
    """Draw a spec: a registered name of a kind, or of any, with known or unknown arguments and arbitrary values."""
    table = REGISTRIES[kind or draw(st.sampled_from(sorted(REGISTRIES)))]
    name = draw(st.sampled_from([n for n in table if n not in NOT_TRIED]))
    known = [p for p in inspect.signature(table[name]).parameters if p not in ("student", "teachers", "objective")]
    chosen = draw(st.lists(st.sampled_from([*known, "nothing"]), max_size=3, unique=True))
    values = [draw(literals | specs("schedule") if kind == "" else literals) for _ in chosen]
    return f"{name}({', '.join(f'{n}={v}' for n, v in zip(chosen, values, strict=True))})"


values = st.one_of(
    numbers,
    st.sampled_from(ODD_FLOATS),
    st.booleans(),
    st.none(),
    st.sampled_from(TEXTS),
    specs(),
    st.lists(st.one_of(numbers, specs("transform"), st.sampled_from(TEXTS)), max_size=3),
    st.dictionaries(
        st.sampled_from(["term", "weight", "model", "split", "x", "ä"]), numbers | specs("loss"), max_size=2
    ),
    st.binary(max_size=4),
)
# The kind of part that each key names: with specs of this kind, the fuzz gets past the first rule.
NAMED = {
    "student.model": "model", "fusion": "fusion", "step": "step", "optimizer": "optimizer", "rate": "schedule",
    "objective.kd.term": "loss", "objective.kd.weight": "schedule", "teachers.big.model": "model",
    "data.augment": "transform", "data.select": "selection", "data.order": "order", "teachers.big.cache": "cache",
    "teachers.big.placement": "placement", "data.tokens": "tokenization",
}  # fmt: skip
KEYS = sorted(
    path.replace("teachers.NAME", "teachers.big").replace("NAME", "kd") for path, default, _ in iter_keys() if default
)
KEYS = [key for key in KEYS if not key.startswith(("data.folder", "distributed", "logging"))]


@st.composite
def changes(draw):
    """Draw one to three changes of the tiny run's config, as `{key: value}`."""
    keys = draw(
        st.lists(st.sampled_from([*KEYS, *NAMED, "nothing", "data.nothing", "teachers.big.x"]), min_size=1, max_size=3)
    )
    return {key: draw(specs(NAMED[key]) if key in NAMED and draw(st.booleans()) else values) for key in keys}


def refused_or_taken(work) -> str:
    """Return the message of an error, or ''; fail if it has several lines, is no known error, or is slow."""
    start = time.perf_counter()
    try:
        work()
        said = ""
    except Exception as error:
        code, said = failures.explain(error)
        assert code in (2, 4), f"{type(error).__name__}: {error}"
        assert "\n" not in said
    assert time.perf_counter() - start < SECONDS
    return said


@pytest.fixture(scope="module", autouse=True)
def _no_code_of_the_users():
    """Keep frames and parts of the tests from counting as a user's own code."""
    with pytest.MonkeyPatch.context() as patch, runs.registries_as_found():
        patch.setattr(failures, "user_location", lambda error: "")
        patch.setattr(failures, "registered_by_others", list)
        runs.load()
        yield


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {}) if isinstance(node.get(name, {}), dict) else {}
        node[last] = value
    return tree


def merged(base, change):
    both = isinstance(base, dict) and isinstance(change, dict)
    return {**base, **{k: merged(base.get(k), v) for k, v in change.items()}} if both else change


fuzz = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
long_fuzz = settings(fuzz, max_examples=600)


def taken(change, folder):
    base = runs.load().to_dict()
    _ = check_config(make(**merged(base, nested(change))), folder)


@given(changes())
@fuzz
def test_a_config_is_taken_or_refused_in_one_line(tmp_path_factory, change):
    refused_or_taken(lambda: taken(change, tmp_path_factory.getbasetemp() / "never"))


@pytest.mark.slow
@given(changes())
@settings(long_fuzz, derandomize=False)
def test_many_more_configs_are_taken_or_refused_in_one_line(tmp_path_factory, change):
    refused_or_taken(lambda: taken(change, tmp_path_factory.getbasetemp() / "never"))


@given(
    st.recursive(values, lambda inner: st.dictionaries(st.text(max_size=5) | st.sampled_from(KEYS), inner, max_size=3))
)
@fuzz
def test_any_nested_data_is_a_config_or_refused(tree):
    refused_or_taken(lambda: make(**tree) if isinstance(tree, dict) else make(student=tree))


@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS) | st.text(max_size=12), st.text(max_size=20) | literals.map(str)), max_size=3
    )
)
@fuzz
def test_any_words_of_the_command_line_are_taken_or_refused(words):
    refused_or_taken(lambda: override(runs.load(), words))


@given(st.text(max_size=60) | st.sampled_from(["(" * 3000, "a(" * 2000, "[" * 500 + "]" * 500, "f(x=" * 300]))
@fuzz
def test_any_text_is_a_spec_or_refused(text):
    refused_or_taken(lambda: parse(text, "step"))


def test_the_fuzz_reaches_every_kind_of_part_and_every_key():
    assert {"loss", "model", "schedule", "transform", "step"} <= set(REGISTRIES)
    sections = [name for name, part in SCHEMA.items() if isinstance(part, OpenSection)]
    assert sections and len(KEYS) > 50 and set(NAMED) - {"objective.kd.term", "objective.kd.weight"} <= {*KEYS}
    with pytest.raises(ConfigError):
        taken({"step": "nothing"}, "never")
