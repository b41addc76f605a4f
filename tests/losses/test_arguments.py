"""Tests that each argument of each registered loss and fusion has an effect, and that the named teacher is compared.

An argument whose type says which other values it may have needs no line here.
"""

import functools
import inspect
import typing
from dataclasses import replace
from typing import Any

import batches
import jax
import numpy as np
import pytest
from checks import assert_close
from examples import FUSED_BY
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective

KEY = jax.random.key(0)
HEADS = "((2, 1), (1, 0))"

# Arguments that a part requires, or that let the others have an effect
BESIDE = {
    "class_graph": {"edges": "((0, 1),)", "kernel": "'head/kernel'"},
    "crd": {"records": "20", "negatives": "8", "width": "3"},
    "decay": {"towards": "'teacher'"},
    "graph": {"edges": "((0, 1), (1, 2))", "node": "'index'"},
    "graph.level": {"node": "'label'", "edges": "((1, 3), (3, 4), (1, 4))"},
    "hard": {"loss": "kd(temperature=1.0)"},
    "hard.first": {"share": "0.5"},
    "heads": {"teacher_heads": HEADS},
    "known_classes": {"loss": "kd(temperature=2.0)"},
    "minilm2": {"relation_heads": "4"},
    "policy_gradient": {"own": "True"},
    "policy_gradient.clip": {"normalized": "False"},
    "policy_gradient.normalized": {"own": "False"},
    "related_labels": {"edges": "((0, 1),)", "share": "0.3"},
    "routed_hidden": {"layers": "((1, 1), (2, 2))"},
    "semckd": {"layers": "((2, 1), (2, 2))"},
    "similarity": {"layers": "(-1, -1)"},
    "standardized": {"loss": "kd(temperature=2.0)"},
    "taid": {"floor": "0.4"},
}
# Another value of an argument, where its type does not say which are allowed
OTHER = {
    "affinity.of": "(1,)",
    "average.weights": "(1.0, 3.0, 2.0)",
    "class_graph.edges": "((0, 1), (1, 2))",
    "cross_entropy.target": "'label_probs'",
    "embedding.projector": "'mlp'",
    "fsp.layers": "((1, 1), (2, 2))",
    "gate.inputs": "('student',)",
    "gate.top": "2",
    "graph.edges": "((0, 2),)",
    "graph.node": "'label'",
    "hard.loss": "kd(temperature=3.0)",
    "hard.share": "0.5",
    "heads.student_heads": "((1, 1), (2, 0))",
    "heads.teacher_heads": "((1, 1), (1, 0))",
    "hidden.weights": "(1, 3)",
    "known_classes.loss": "kd(temperature=3.0)",
    "minilm2.relation_heads": "2",
    "minilm2.weights": "(1.0, 2.0, 1.0)",
    "policy_gradient.clip": "0.1",
    "related_labels.edges": "((0, 2),)",
    "related_labels.target": "'index'",
    "review.width": "2",
    "rkd.triplets": "9",
    "routed_hidden.layers": "((1, 2), (2, 1))",
    "sampled.weights": "(1.0, 0.0, 0.0)",
    "semckd.layers": "((1, 1), (2, 2))",
    "similarity.layers": "(1, 1)",
    "standardized.loss": "kd(temperature=3.0)",
    "taid.floor": "0.6",
}
LAYERS = {"'uniform'": "'last'", "'last'": "'uniform'", "'skip'": "'last'", "None": "(1, 1)"}
# Height and width, or length, of the hidden states that a loss needs
EXTENTS = dict.fromkeys(("attention_transfer", "fsp", "nst", "review", "similarity"), (2, 3)) | {"pkd": (3,)}
TEXTS = ("policy_gradient",)  # losses whose arguments have an effect on texts alone
# Arguments that change nothing in one call, and the tests that show what they do
ELSEWHERE = {
    "class_graph.kernel": "test_class_graph.py",
    "gold.rest_weight": "test_gold.py",
    "gold.vocabulary": "test_gold.py",
    "skew_reverse_kl.version": "test_divergences.py",
    "taid.decay": "test_taid.py",
    "taid.rate": "test_taid.py",
}


def other_values(name: str, parameter: inspect.Parameter, default: str) -> list[str]:
    """Return other values of an argument than its default, as texts of a spec."""
    if name in OTHER:
        return [OTHER[name]]
    if parameter.name == "layers":
        return [LAYERS[default]]
    if typing.get_origin(parameter.annotation) is typing.Literal:
        return [repr(value) for value in typing.get_args(parameter.annotation) if repr(value) != default]
    known = {"True": "False", "False": "True"}
    if default in known:
        return [known[default]]
    return [repr(int(default) + 1) if default.isdecimal() else repr(round(float(default) + 0.3, 4))]


def arguments() -> list[Any]:
    """Return a case for each argument: kind of the part, name, spec without and with another value."""
    cases = []
    for kind in ("losses", "fusions"):
        for part, factory in getattr(registry, kind).factories.items():
            if not factory.__module__.startswith("jaxdistill."):
                continue
            for parameter in inspect.signature(factory).parameters.values():
                name = f"{part}.{parameter.name}"
                if name in ELSEWHERE:
                    continue
                beside = BESIDE.get(part, {}) | BESIDE.get(name, {})
                if parameter.name == "scale_t2":
                    beside["temperature"] = "2.0"
                default = beside.get(parameter.name, repr(parameter.default))
                for value in other_values(name, parameter, default):
                    extent = EXTENTS.get(part, (2, 3) if value == "'conv'" else ())
                    specs = [spec(part, beside), spec(part, beside | {parameter.name: value})]
                    cases.append(pytest.param(kind, *specs, extent, id=f"{name}={value}"))
    return cases


def spec(part: str, words: dict[str, str]) -> str:
    return f"{part}({', '.join(f'{name}={value}' for name, value in words.items())})"


@functools.cache
def outcome(kind: str, text: str, extent: tuple[int, ...]) -> Any:
    """Return parameters, state and values of a loss for two teachers, or of a fusion for three."""
    if kind == "fusions":
        seen = batches.signals(depths=(3, 3, 3))
        fusion = registry.fusions.build(text, "fusion")
        variables = fusion.init(KEY, seen)
        return variables, fusion.apply(*variables, replace(seen, temperature=4.0), key=KEY)
    rows = (2, 3) if text.startswith(TEXTS) else (6,)
    return values(text, batches.signals(batch=rows, depths=(3, 3), extent=extent))


def values(text: str, seen: Any) -> Any:
    term = build_loss(text)
    fusion = registry.fusions.build(FUSED_BY.get(text.partition("(")[0], "single"), "fusion")
    minimised = objective({"term": WeightedTerm(term)}, fusion)
    params, state = minimised.init(KEY, {"train": seen})
    fused, _ = minimised.fuse(params, state, seen, key=KEY, temperature=term.temperature)
    return params, state, term.apply(params["terms"]["term"], state["terms"]["term"], fused, key=KEY)


@pytest.mark.parametrize(("kind", "plain", "changed", "extent"), arguments())
def test_each_argument_has_an_effect(kind, plain, changed, extent):
    before, after = (outcome(kind, text, extent) for text in (plain, changed))
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    if jax.tree.structure(before) != jax.tree.structure(after) or shapes(before) != shapes(after):
        return
    pairs = zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (before, after)), strict=True)
    numbers = [(x, y) for x, y in pairs if x.dtype.kind in "biuf"]
    assert any(not np.allclose(x, y, rtol=1e-3, atol=1e-6, equal_nan=True) for x, y in numbers)


@pytest.mark.parametrize(
    "name",
    [name for name, make in registry.losses.factories.items() if "teacher" in inspect.signature(make).parameters],
)
def test_a_loss_compares_the_teacher_that_is_named(name):
    """Compare with the loss of a student that has this teacher alone; by default, it is the first one."""
    seen = batches.signals(depths=(3, 3), extent=EXTENTS.get(name, ()))
    alone = lambda number: replace(
        seen,
        teachers=(seen.teachers[number],),
        params=seen.params | {"teachers": (seen.params["teachers"][number],)},
    )
    plain, named = BESIDE.get(name, {}), BESIDE.get(name, {}) | {"teacher": "1"}
    first, second = (values(spec(name, plain), alone(number))[2][0] for number in (0, 1))
    assert_close(values(spec(name, named), seen)[2][0], second)
    assert_close(values(spec(name, plain), seen)[2][0], first)
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 1e-4
