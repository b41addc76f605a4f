"""Tests of the benchmark of choices, at a tiny size: each choice has the loss of the unchanged step."""

import argparse

import jax
import pytest

from experiments.benchmarks import choices
from experiments.benchmarks.sizes import SIZES

NETWORK = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 1, "ffn": 32}
TINY = {"rows": 2, "length": 8, "vocabulary": 32, "chunks": 4, "student": NETWORK, "teacher": NETWORK}
FAST = ("teacher in int8",)
KNOWN = argparse.Namespace(size="cpu", rounds=1)


@pytest.fixture(scope="module")
def base():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES["lm"], "cpu", TINY)
        work = choices.build_work(choices.Choice(), "cpu")
        yield work, work.step()


RUN = [name for name in choices.CHOICES if name not in choices.GPU_ONLY]


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in RUN])
def test_a_choice_is_the_same_step(base, name):
    work, first = base
    found = choices.measure(choices.CHOICES[name], work, first, KNOWN)
    assert abs(found["loss"]) < (0.02 if name.startswith("teacher in") else 1e-5)
    assert found["ratio"] > 0 and found["temporaries"] > 0


def test_cudnn_is_asked_for_by_name(monkeypatch):
    seen = []
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, *_, implementation, **__: seen.append(implementation) or q
    )
    for options, wanted in (({}, "xla"), ({"attention": "cudnn"}, "cudnn")):
        model = choices.network(32, **NETWORK, **options)
        rows = choices.tokens(TINY)
        values = jax.eval_shape(model.init, jax.random.key(0), rows)
        jax.eval_shape(lambda v, m=model, r=rows: m.apply(*v, r, train=True, key=jax.random.key(0)), values)
        assert seen.pop() == wanted
