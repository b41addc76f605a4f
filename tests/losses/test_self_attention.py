"""Tests of `minilm`, `minilm2`, `tinybert` and `heads`: float64 numpy with gradients, padding, and running text."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_same
from terms import build_loss

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Array, AttentionHeads, Outputs, Signals

KEY = jax.random.key(0)
ROWS, LENGTH = 3, 5


def world(
    heads=(2, 2), sizes=(3, 4), widths=(4, 6), depths=(2, 4), groups=(None, None), seed=0, batch=None, dtype="float64"
) -> Signals:
    """Build signals of two transformers, for texts without padding; in each pair of numbers, the student's is first."""
    draw = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(draw.normal(size=shape), dtype)

    def said(heads, size, width, depth, groups):
        pair = lambda: AttentionHeads(
            normal(ROWS, LENGTH, heads, size), *normal(2, ROWS, LENGTH, groups or heads, size)
        )
        states = tuple(normal(ROWS, LENGTH, width) for _ in range(depth + 1))
        return Outputs(normal(ROWS, 2), states, tuple(pair() for _ in range(depth)))

    student, teacher = (said(*each) for each in zip(heads, sizes, widths, depths, groups, strict=True))
    rows, params = batch or {}, {"student": {}, "teachers": ({},)}
    counts = (jnp.ones(ROWS, dtype), jnp.zeros((), jnp.int32), 1.0)
    return Signals(student, (teacher,), teacher, rows, *counts, params)


def values(spec: str, seen: Signals, params=None) -> Array:
    return compiled(spec)[0](seen, params)


def value_and_gradient(spec: str, seen: Signals, params=None):
    """Return the mean over the rows and its gradient in the student's outputs."""
    return jax.device_get(compiled(spec)[1](seen.student, seen, params))


@functools.cache
def compiled(spec: str):
    term = build_loss(spec)

    def apply(seen, params):
        return term.apply(term.init(KEY, seen)[0] if params is None else params, {}, seen, key=KEY)[0]

    mean = lambda student, seen, params: jnp.mean(apply(replace(seen, student=student), params))
    return jax.jit(apply), jax.jit(jax.value_and_grad(mean))


def numbers(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


# Restated in numpy: heads before tokens, `[rows, heads, tokens, size]`


def heads_first(x) -> np.ndarray:
    return np.swapaxes(np.asarray(x, np.float64), 1, 2)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergence(student: tuple, teacher: tuple) -> tuple[float, np.ndarray, np.ndarray]:
    """Return KL of softmax(a b' / sqrt d), mean over rows, heads and tokens; its gradients in the student's a and b."""
    (a, b), (c, d) = (tuple(map(heads_first, pair)) for pair in (student, teacher))
    root = a.shape[-1] ** 0.5
    q, p = softmax(a @ np.swapaxes(b, -1, -2) / root), softmax(c @ np.swapaxes(d, -1, -2) / d.shape[-1] ** 0.5)
    slope = (q - p) / np.prod(q.shape[:-1]) / root
    value = np.sum(p * np.log(p / q)) / np.prod(q.shape[:-1])
    return value, np.swapaxes(slope @ b, 1, 2), np.swapaxes(np.swapaxes(slope, -1, -2) @ a, 1, 2)


def assert_golden(found, said, precision):
    """Check equality up to 1e-12 (float64) or 1e-5 (float32), relative to the largest number or to 1."""
    tolerance = 1e-12 if precision == "float64" else 1e-5
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(said), strict=True):
        assert np.abs(np.float64(x) - y).max() <= tolerance * max(1.0, np.abs(y).max())


PRECISIONS = pytest.mark.parametrize("precision", ["float64", "float32"])


@PRECISIONS
def test_minilm_is_its_formula_in_value_and_gradient(precision):
    with jax.enable_x64(precision == "float64"):
        seen = world(dtype=precision)
        value, slope = value_and_gradient("minilm", seen)
        ours, theirs = seen.student.attentions[-1], seen.teachers[0].attentions[-1]
        attention, query, key = divergence((ours.query, ours.key), (theirs.query, theirs.key))
        relations, left, right = divergence((ours.value, ours.value), (theirs.value, theirs.value))
        assert_golden(value, attention + relations, precision)
        assert_golden(slope.attentions[-1], AttentionHeads(query, key, left + right), precision)
        assert not any(x.any() for x in jax.tree.leaves((slope.attentions[0], slope.hidden_states)))


@PRECISIONS
def test_minilm2_is_its_formula_in_value_and_gradient(precision):
    """Check four heads of size 3 and two of size 6, both of which become six relation heads of size 2."""
    with jax.enable_x64(precision == "float64"):
        seen = world(heads=(4, 2), sizes=(3, 6), dtype=precision)
        value, slope = value_and_gradient("minilm2(relation_heads=6, layers=((-1, 3),), weights=(1, 2, 0.5))", seen)
        total, slopes = 0.0, []
        for kind, weight in (("query", 1), ("key", 2), ("value", 0.5)):
            x, y = (
                np.asarray(getattr(layer, kind), np.float64).reshape(ROWS, LENGTH, 6, 2)
                for layer in (seen.student.attentions[-1], seen.teachers[0].attentions[2])
            )
            one, left, right = divergence((x, x), (y, y))
            total += weight * one
            slopes.append(weight * (left + right).reshape(ROWS, LENGTH, 4, 3))
        assert_golden(value, total, precision)
        assert_golden(slope.attentions[-1], AttentionHeads(*slopes), precision)


def published_tinybert(student: Outputs, teacher: Outputs, kernel: np.ndarray, masked: np.ndarray | None = None):
    """Return the published sum of means over all positions, masked keys scored 0; and its gradients in the student.

    Layers are counted as the published code does: attentions from 0, hidden states from the embedding.
    """
    apart = len(teacher.attentions) // len(student.attentions)
    total, queries, states = 0.0, [], []
    for i, ours in enumerate(student.attentions):
        theirs = teacher.attentions[i * apart + apart - 1]
        scores = lambda side: (
            heads_first(side.query) @ np.swapaxes(heads_first(side.key), -1, -2) / (side.query.shape[-1] ** 0.5)
        )
        apart_by = scores(ours) - scores(theirs)
        apart_by = apart_by if masked is None else np.where(masked[:, None, None, :], 0, apart_by)
        total += np.mean(apart_by**2)
        slope = 2 * apart_by / apart_by.size / ours.query.shape[-1] ** 0.5
        queries.append(np.swapaxes(slope @ heads_first(ours.key), 1, 2))
    for i, ours in enumerate(student.hidden_states):
        apart_by = np.asarray(ours, np.float64) @ kernel - np.asarray(teacher.hidden_states[i * apart], np.float64)
        total += np.mean(apart_by**2)
        states.append(2 * apart_by / apart_by.size @ kernel.T)
    return total, queries, states


@PRECISIONS
def test_tinybert_is_the_published_reduction_where_nothing_is_padded(precision):
    kernel = np.random.default_rng(1).normal(size=(4, 6))
    with jax.enable_x64(precision == "float64"):
        seen = world(dtype=precision)
        value, slope = value_and_gradient("tinybert", seen, {"kernel": jnp.asarray(kernel, precision)})
        total, queries, states = published_tinybert(seen.student, seen.teachers[0], kernel)
        assert_golden(value, total, precision)
        assert_golden([heads.query for heads in slope.attentions], queries, precision)
        assert_golden(list(slope.hidden_states), states, precision)


def test_tinybert_learns_one_kernel_for_the_embedding_and_all_layers():
    params, state = build_loss("tinybert").init(KEY, world(dtype="float32"))
    assert {name: x.shape for name, x in params.items()} == {"kernel": (4, 6)} and not state
    assert build_loss("tinybert(projector='none')").init(KEY, world(dtype="float32")) == ({}, {})


def test_with_as_many_relation_heads_as_heads_the_value_relations_are_those_of_minilm():
    seen = world(dtype="float32")
    alike = lambda outputs: replace(  # queries and keys of zeros attend evenly, on both sides
        outputs,
        attentions=tuple(AttentionHeads(0 * heads.query, 0 * heads.key, heads.value) for heads in outputs.attentions),
    )
    even = replace(seen, student=alike(seen.student), teachers=tuple(map(alike, seen.teachers)))
    assert_close(values("minilm2(relation_heads=2, weights=(0, 0, 1))", seen), values("minilm", even))


def test_of_several_pairs_it_is_the_mean():
    seen = world(dtype="float32")
    for spec in ("minilm({})", "minilm2(2, {})"):
        one, other, both = (
            values(spec.format(layers), seen) for layers in ("((1, 2),)", "((2, 4),)", "((1, 2), (2, 4))")
        )
        assert_close(both, (one + other) / 2)
        assert_close(values(spec.format("'uniform'"), seen), both)
        assert np.abs(one - other).max() > 0.05


# Students that differ from their teacher


NAMED = "((2, 1), (2, 0), (1, 0))"
WEIGHTS = (0, 0, 0), (1, -0.5, 1)  # that weigh nothing, or less
TERMS = ["minilm", "minilm2(relation_heads=2)", "tinybert(projector='none')", f"heads({NAMED}, {NAMED})"]
ALL = pytest.mark.parametrize("spec", TERMS, ids=["minilm", "minilm2", "tinybert", "heads"])


def twin(change) -> Signals:
    """Build a student equal to its teacher, but for `change` of its heads `[rows, tokens, heads, size]`."""
    seen = world(heads=(4, 4), sizes=(4, 4), depths=(2, 2), widths=(6, 6), dtype="float32")
    said = seen.teachers[0]
    return replace(seen, student=replace(said, attentions=jax.tree.map(change, said.attentions)))


@ALL
def test_another_order_of_the_heads_and_dead_heads_are_far_from_the_teacher(spec):
    same, shuffled, dead = (
        np.mean(values(spec, twin(change)))
        for change in (lambda x: x, lambda x: jnp.roll(x, 1, axis=2), lambda x: x.at[:, :, 1:].set(0))
    )
    assert abs(same) < 1e-6 and shuffled > 0.1 and dead > 0.1


def test_relations_do_not_see_a_rotation_of_the_values_but_scores_see_one_of_the_queries():
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    seen = twin(lambda x: x)
    rotate = lambda field: replace(
        seen,
        student=replace(
            seen.student,
            attentions=tuple(
                replace(h, **{field: getattr(h, field) @ jnp.asarray(turned, jnp.float32)})
                for h in seen.student.attentions
            ),
        ),
    )
    assert_close(values("minilm", rotate("value")), np.zeros(ROWS))
    assert np.min(values("minilm", rotate("query"))) > 0.05


# Padding


LENGTHS = np.array([3, 1, 5])


def longer(seen: Signals, padding: int, filler: float) -> Signals:
    """Return the same texts with padding behind them, all of which holds the number `filler`."""

    def fill(x):
        real = (jnp.arange(LENGTH) < LENGTHS[:, None]).reshape(ROWS, LENGTH, *[1] * (x.ndim - 2))
        kept = jnp.where(real, x, filler)
        return jnp.concatenate([kept, jnp.full((ROWS, padding, *x.shape[2:]), filler, x.dtype)], axis=1)

    texts = lambda said: replace(
        said, hidden_states=jax.tree.map(fill, said.hidden_states), attentions=jax.tree.map(fill, said.attentions)
    )
    real = jnp.asarray(np.arange(LENGTH + padding) < LENGTHS[:, None], jnp.int32)
    return replace(
        seen, student=texts(seen.student), teachers=tuple(map(texts, seen.teachers)), batch={"attention_mask": real}
    )


def alone(seen: Signals, row: int) -> Signals:
    """Return the signals of one text without its padding."""
    cut = lambda x: x[row : row + 1, : LENGTHS[row]]
    texts = lambda said: Outputs(said.logits[row : row + 1], *jax.tree.map(cut, (said.hidden_states, said.attentions)))
    return replace(
        seen, student=texts(seen.student), teachers=tuple(map(texts, seen.teachers)), mask=jnp.ones(1), batch={}
    )


@pytest.mark.sampled("heads")
@ALL
def test_padding_counts_nothing_whatever_it_holds_and_however_much_there_is(spec):
    seen = world(widths=(6, 6), dtype="float32")
    found = values(spec, longer(seen, 0, 0.0))
    assert_close(found, [values(spec, alone(seen, row))[0] for row in range(ROWS)], rtol=1e-5)
    assert_close(values(spec, longer(seen, 5, 0.0)), found, rtol=1e-6)
    value, slope = value_and_gradient(spec, longer(seen, 5, 0.0))
    for filler in (1e4, np.nan):
        assert_same(value_and_gradient(spec, longer(seen, 5, filler)), (value, slope))
    for leaf in jax.tree.leaves((slope.hidden_states, slope.attentions)):
        assert not leaf[:, 5:].any()


def test_the_published_tinybert_shrinks_as_padding_grows_and_ours_does_not():
    seen = world(widths=(6, 6), dtype="float32")
    value = lambda padding: np.mean(values("tinybert(projector='none')", longer(seen, padding, 0.0)))

    def published(padding):
        padded = longer(seen, padding, 0.0)
        masked = np.asarray(padded.batch["attention_mask"]) == 0
        return published_tinybert(padded.student, padded.teachers[0], np.eye(6), masked)[0]

    assert published(5) < 0.55 * published(0)
    assert_close(value(5), value(0), rtol=1e-6)


@pytest.mark.sampled("heads", "minilm")
@ALL
def test_a_text_without_any_token_is_finite_and_learns_nothing(spec):
    seen = world(widths=(6, 6), dtype="float32", batch={"attention_mask": jnp.zeros((ROWS, LENGTH), jnp.int32)})
    value, slope = value_and_gradient(spec, seen)
    assert abs(value) < 1e-6 and not any(x.any() for x in jax.tree.leaves(slope))


# Running text


@ALL
def test_in_running_text_a_token_does_not_see_what_comes_later(spec):
    seen = world(widths=(6, 6), groups=(2, 1), dtype="float32")
    seen = replace(seen, mask=jnp.ones((ROWS, LENGTH)))
    cut = lambda said: replace(said, attentions=jax.tree.map(lambda x: x.at[:, 3:].multiply(-2), said.attentions))
    other = replace(seen, student=cut(seen.student))
    found, changed = values(spec, seen), values(spec, other)
    assert found.shape == (ROWS, LENGTH)
    assert_close(changed[:, :3], found[:, :3])
    assert np.abs(changed[:, 3:] - found[:, 3:]).min() > 1e-3


# What does not fit


@pytest.mark.parametrize(
    ("spec", "fields", "said"),
    [
        ("minilm", {"heads": (2, 4)}, "numbers of heads differ .student 2, teacher 4.; use minilm2"),
        ("tinybert", {"heads": (2, 4)}, "numbers of heads differ .student 2, teacher 4.; use minilm2"),
        ("minilm2(relation_heads=4)", {}, "4 relation_heads do not divide a width of 6"),
        ("minilm(layers=((0, 1),))", {}, "names layer 0, the embedding, which has no heads"),
        ("minilm(layers='5-6')", {}, "teacher has no layer 5"),
        ("tinybert(projector='none')", {}, "widths differ .student 4, teacher 6.* use projector='linear'"),
        ("minilm(teacher=1)", {}, "no teacher 1"),
    ],
)
def test_what_does_not_fit_is_told_with_the_cure(spec, fields, said):
    with pytest.raises(ValueError, match=said):
        values(spec, world(dtype="float32", **fields))


@pytest.mark.parametrize("spec", ["minilm2(0)", *(f"minilm2(2, weights={w})" for w in WEIGHTS), "minilm('unifrom')"])
def test_a_wrong_argument_fails_before_any_model_exists(spec):
    with pytest.raises(ConfigError, match=r"at least|unknown layer map"):
        build_loss(spec)


def test_models_without_heads_or_with_other_tokens_are_refused():
    seen, term = world(dtype="float32"), build_loss("minilm")
    without = lambda said: replace(said, attentions=())
    with pytest.raises(ValueError, match=r"student returns no attention heads; use a transformer$"):
        term.apply({}, {}, replace(seen, student=without(seen.student)), key=KEY)
    with pytest.raises(ValueError, match=r"teacher returns no attention heads.*caches hold none"):
        term.apply({}, {}, replace(seen, teachers=(without(seen.teachers[0]),)), key=KEY)
    cut = jax.tree.map(lambda x: x[:, :4], seen.student.attentions)
    with pytest.raises(ValueError, match=r"numbers of tokens differ \(student 4, teacher 5\)"):
        term.apply({}, {}, replace(seen, student=replace(seen.student, attentions=cut)), key=KEY)
