"""Tests of losses that compare the rows of a batch: by hand, against `loops.py`, and with deliberate mistakes."""

import functools
import inspect
import itertools
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from batches import signals, single
from checks import all_finite, assert_close
from loops import BY_LOOPS, by_loops_similarity, huber
from terms import build_loss

from jaxdistill.core.collectives import PMAP_AXIS
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Outputs, Signals
from jaxdistill.losses.relations import cc, pkt, relations, rkd, similarity
from jaxdistill.losses.relations.relations import safe_norm, valid_pairs
from jaxdistill.losses.relations.rkd import angle_difference, distance_difference, draw_triplets, triplet_difference
from jaxdistill.losses.term import unit

KEY = jax.random.key(0)
GOLDEN = Path(__file__).parents[1] / "golden"


@functools.cache
def compiled(spec: str):
    """Return compiled functions of the value, and of its gradient in the student's embeddings."""
    term = build_loss(spec)

    def value(seen, key):
        return term.apply(*term.init(KEY, seen), seen, key=key)[0]

    loss = lambda embedding, seen, key: value(replace(seen, student=replace(seen.student, embedding=embedding)), key)
    return jax.jit(value), jax.jit(jax.grad(loss))


def value(spec: str, seen: Signals, key=KEY) -> float:
    return float(compiled(spec)[0](seen, key))


def gradient(spec: str, seen: Signals) -> np.ndarray:
    return np.asarray(compiled(spec)[1](seen.student.embedding, seen, KEY))


def of_rows(student, teacher, mask=None) -> Signals:
    """Build signals with these embeddings of student and teacher."""
    student, teacher = map(single, (student, teacher))
    seen = signals(batch=(len(student),))
    embedded = replace(seen.student, embedding=student), (replace(seen.teachers[0], embedding=teacher),)
    seen = replace(seen, student=embedded[0], teachers=embedded[1])
    return seen if mask is None else replace(seen, mask=single(mask))


@pytest.mark.sampled("3-rkd", "3-cc", "3-pkt")
@pytest.mark.parametrize("name", BY_LOOPS)
@pytest.mark.parametrize("padding", [0, 3])
def test_a_relational_loss_is_that_of_the_rows_that_count(name, padding):
    draw = np.random.default_rng(1)
    student, teacher = draw.normal(size=(7, 3)), draw.normal(size=(7, 5))
    expected = BY_LOOPS[name](student, teacher)
    filled = lambda x: np.insert(x, [2] * padding, np.nan, axis=0)
    seen = of_rows(filled(student), filled(teacher), np.insert(np.ones(7), [2] * padding, 0))
    assert_close(value(name, seen), expected, rtol=1e-5)
    slope = gradient(name, seen)
    assert_close(np.delete(slope, range(2, 2 + padding), axis=0), gradient(name, of_rows(student, teacher)))
    assert not slope[2 : 2 + padding].any()


def test_rkd_by_hand():
    """Check a right triangle against an equilateral one; the mean has each pair twice, and the diagonal as zeros."""
    student = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, np.sqrt(3)]])
    distances = [huber(3 / 4 - 1), huber(4 / 4 - 1), huber(5 / 4 - 1)]
    assert_close(value("rkd(distance=1.0, angle=0.0)", of_rows(student, teacher)), 2 * sum(distances) / 9)
    # the mean has each angle twice; of a corner with itself, the cosine is 1 in both triangles
    angles = [huber(0 - 0.5), huber(3 / 5 - 0.5), huber(4 / 5 - 0.5)]
    assert_close(value("rkd(distance=0.0, angle=1.0)", of_rows(student, teacher)), 2 * sum(angles) / 27)


def test_similarity_by_hand():
    seen = of_rows(np.eye(2), np.ones((2, 1)))  # rows (1, 0) and (0, 1) beside (1, 1) / sqrt 2
    assert_close(value("similarity", seen), 2 * ((1 - 0.5**0.5) ** 2 + 0.5) / 4)


def test_pkt_by_hand():
    seen = of_rows(np.eye(2), np.ones((2, 1)))  # the student's neighbours are 2/3 and 1/3, the teacher's even
    assert_close(value("pkt", seen), (0.5 * np.log(0.5 / (2 / 3)) + 0.5 * np.log(0.5 / (1 / 3))) / 2, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.2, 0.4, 1.0])
def test_cc_is_the_gaussian_kernel_of_unit_rows_in_the_limit(gamma):
    x = np.float32(np.random.default_rng(0).normal(size=(5, 3)))
    rows = x / np.linalg.norm(x, axis=-1, keepdims=True)
    kernel = np.exp(-gamma * np.sum((rows[:, None] - rows[None]) ** 2, -1))
    series = jax.jit(cc.gaussian_kernel, static_argnums=(1, 2))
    assert_close(series(x, gamma, 20), kernel, rtol=1e-4)
    assert np.abs(series(x, gamma, 2) - kernel).max() > 1e-3


# Sampled angles


def test_all_triplets_are_all_angles():
    draw = np.random.default_rng(2)
    student, teacher = (np.float32(draw.normal(size=(5, width))) for width in (3, 4))
    every = np.int32(list(itertools.product(range(5), repeat=3)))
    expected = jax.jit(angle_difference)(student, teacher, np.ones(5, bool))
    assert_close(jax.jit(triplet_difference)(student, teacher, every), expected)


def test_triplets_are_drawn_evenly_from_the_rows_that_count():
    counts, draw = np.array([False, True, True, False, True]), jax.jit(draw_triplets, static_argnums=1)
    drawn = np.asarray(draw(KEY, 6000, counts))
    assert drawn.shape == (6000, 3)
    seen, often = np.unique(drawn, axis=0, return_counts=True)
    assert set(seen.flat) == {1, 2, 4} and len(seen) == 27
    assert np.abs(often / 6000 * 27 - 1).max() < 0.3  # 5 standard deviations
    assert (np.asarray(draw(jax.random.key(1), 6000, counts)) != drawn).any()


@pytest.mark.slow
def test_sampled_angles_are_right_on_average():
    seen = of_rows(*np.random.default_rng(3).normal(size=(2, 8, 4)))
    whole = value("rkd(distance=0.0)", seen)
    drawn = [value("rkd(distance=0.0, triplets=200)", seen, jax.random.key(n)) for n in range(30)]
    assert np.std(drawn) > 0.02 * whole
    assert abs(np.mean(drawn) - whole) < 4 * np.std(drawn) / 30**0.5


# What is compared


def test_equal_rows_are_0_apart_and_have_a_gradient():
    student = np.float32([[1.0, 2.0], [1.0, 2.0], [3.0, 2.0], [0.0, 5.0]])
    distances = lambda s: distance_difference(s, jnp.eye(len(s)), jnp.ones((len(s), len(s)), bool))
    parts = lambda s: distances(s) + angle_difference(s, jnp.eye(4), jnp.ones(4, bool))
    found, slope = jax.jit(jax.value_and_grad(parts))(student)
    assert all_finite((found, slope)) and np.abs(slope).max() > 0.01
    # a distance of 0 is not in mu: of three rows, two of them equal, unequal pairs are as far apart as the mean
    assert_close(jax.jit(distances)(student[:3]), 2 * huber(0 - 1) / 9)


def test_lengths_of_zero_vectors_have_a_gradient_of_zero_and_nan_is_not_hidden():
    for function in (safe_norm, unit):
        both = jax.jit(jax.value_and_grad(lambda x, f=function: f(x).sum()))
        found, slope = both(np.zeros((1, 3), np.float32))
        assert found == 0 and not np.any(slope)
        assert np.isnan(jax.jit(function)(np.float32([[np.nan, 1.0, 0.0]]))).all()
    assert_close(jax.jit(safe_norm)(np.float32([[3.0, 4.0]])), [5.0])


def test_a_batch_in_which_nothing_counts_or_nothing_can_be_compared_is_no_loss():
    for name in BY_LOOPS:
        assert value(name, of_rows(np.ones((3, 2)), np.ones((3, 2)), np.zeros(3))) == 0
        assert value(name, of_rows(np.ones((1, 2)), np.ones((1, 4)))) < 1e-12  # 0 up to rounding of unit rows


gather_representations = jax.jit(
    lambda seen, flat: relations.gather_representations(seen, (1, -1), 0, flat=flat), static_argnums=1
)
valid_rows = jax.jit(relations.valid_rows)


def hidden_rows(seen: Signals, flat: bool = False) -> np.ndarray:
    return np.asarray(gather_representations(seen, flat).student)


def test_hidden_states_are_averaged_over_their_positions_or_stand_side_by_side():
    seen = signals(extent=(2, 3))
    states = np.asarray(seen.student.hidden_states[1])
    assert_close(hidden_rows(seen), states.mean((1, 2)))
    assert_close(hidden_rows(seen, flat=True), states.reshape(6, -1))
    similar = gather_representations(seen, True)
    by_loops = by_loops_similarity(*(np.asarray(x, np.float64) for x in similar[:2]))
    assert_close(value("similarity(layers=(1, -1))", seen), by_loops)
    assert abs(value("similarity(layers=(1, -1), extent='mean')", seen) - by_loops) > 1e-3


def test_padded_positions_of_a_text_are_out():
    real = np.int32([[1, 1, 0, 0], [1, 1, 1, 0]])
    seen = signals(batch=(2,), extent=(4,))
    seen = replace(seen, batch=seen.batch | {"attention_mask": real})
    states = np.asarray(seen.student.hidden_states[1])
    assert_close(hidden_rows(seen), np.stack([states[0, :2].mean(0), states[1, :3].mean(0)]))
    flat = hidden_rows(seen, flat=True).reshape(2, 4, -1)
    assert_close(flat, states * np.asarray(real)[..., None])


def test_a_running_text_is_one_row_over_its_tokens_that_count():
    seen = signals(batch=(3, 4))
    mask = np.float32([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    seen = replace(seen, mask=mask)
    states = np.asarray(seen.student.hidden_states[1])
    assert_close(hidden_rows(seen), np.stack([states[0, :2].mean(0), states[1].mean(0), np.zeros(4)]))
    assert_close(hidden_rows(seen, flat=True), (states * np.asarray(mask)[..., None]).reshape(3, -1))
    assert valid_rows(seen).tolist() == [True, True, False]


def test_what_cannot_be_compared_is_told_with_the_cure():
    seen = signals()
    bare = replace(seen, student=Outputs(seen.student.logits))
    with pytest.raises(ValueError, match=r"student returns no embedding.*layers=\(-1, -1\)"):
        value("rkd", bare)
    states = (*seen.teachers[0].hidden_states[:-1], None)
    cached = replace(seen, teachers=(replace(seen.teachers[0], hidden_states=states),))
    with pytest.raises(ValueError, match=r"teacher's outputs lack layers \[4\]; .* lists \[0, 1, 2, 3\]"):
        value("pkt(layers=(-1, -1))", cached)
    with pytest.raises(ValueError, match="the student has no layer 7"):
        value("cc(layers=(7, -1))", seen)
    with pytest.raises(ValueError, match="no teacher 1"):
        value("similarity(teacher=1)", seen)


@pytest.mark.parametrize(
    "spec", ["rkd(distance=0.0, angle=0.0)", "rkd(angle=-1.0)", "rkd(triplets=-5)", "cc(gamma=0.0)", "cc(order=0)"]
)
def test_numbers_out_of_range_are_refused(spec):
    with pytest.raises(ConfigError, match=r"0|1 or more"):
        build_loss(spec)


# Broken twins: copies of our code with one mistake each, which the published values must catch


def broken(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{module.__name__} no longer says {old!r}"
    twin = types.ModuleType(module.__name__)
    with runs.registries_as_found():
        exec(compile(source.replace(old, new), module.__file__, "exec"), twin.__dict__)
    return twin


ROWS = jnp.ones(16, bool)
TWINS = {
    "mu with the diagonal": (rkd, "jnp.where(distances != 0, pairs, 0)", "pairs"),
    "angles summed": (rkd, "/ jnp.maximum(total, 1)", ""),
    "angles without unit length": (rkd, "unit(x[None, :] - x[:, None])", "(x[None, :] - x[:, None])"),
    "similarity summed": (similarity, "/ jnp.where(total == 0, 1, total)", ""),
    "similarity of unit matrices": (
        similarity,
        "unit(jnp.where(pairs != 0, gram(x) * pairs, 0))",
        "unit(gram(x).ravel())",
    ),
    # the other axis alone would give the same, since a kernel is symmetric
    "pkt over both axes": (pkt, "axis=1", "axis=None"),
    "pkt as a sum": (pkt, "pair_mean(", "len(p) * pair_mean("),
    "pkt the other way round": (pkt, "(p + EPSILON) / (q + EPSILON)", "(q + EPSILON) / (p + EPSILON)"),
    "cc of rows as they are": (cc, "gram(unit(x))", "gram(x)"),
}
PUBLISHED = {
    rkd: lambda m, s, t: 25 * m.distance_difference(s, t, valid_pairs(ROWS)) + 50 * m.angle_difference(s, t, ROWS),
    similarity: lambda m, s, t: m.gram_difference(s, t, valid_pairs(ROWS)),
    pkt: lambda m, s, t: m.neighbour_divergence(s, t, ROWS),
    cc: lambda m, s, t: m.correlation_difference(s, t, ROWS, 0.4, 2),
}
NAMES = {rkd: "rkd_25_50", similarity: "similarity", pkt: "pkt", cc: "cc"}


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_twin_is_caught(twin):
    module, old, new = TWINS[twin]
    name, golden = NAMES[module], np.load(GOLDEN / ("relations.npz" if module is cc else "losses.npz"))
    student, teacher = (np.float32(golden[f"{name}/{which}"]) for which in ("student", "teacher"))
    said = golden[f"{name}/value"]
    found = lambda m: float(jax.jit(lambda s, t: PUBLISHED[module](m, s, t))(student, teacher))
    assert abs(found(module) / said - 1) < 1e-4
    assert abs(found(broken(module, old, new)) / said - 1) > 1e-2


@pytest.mark.sampled("rkd")
@pytest.mark.parametrize("name", BY_LOOPS)
def test_a_device_that_sees_its_own_rows_alone_is_caught(name, monkeypatch):
    draw = np.random.default_rng(4)
    seen = of_rows(draw.normal(size=(16, 3)), draw.normal(size=(16, 5)))
    rows = (seen.student, seen.teachers, seen.batch, seen.mask)
    term = build_loss(name)

    def over_devices():
        def own(rows):
            mine = replace(seen, student=rows[0], teachers=rows[1], batch=rows[2], mask=rows[3])
            return term.apply({}, {}, mine, key=KEY)[0]

        split = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), rows)
        return np.asarray(jax.pmap(own, axis_name=PMAP_AXIS)(split))

    assert_close(over_devices(), np.full(8, value(name, seen)), rtol=1e-4)
    monkeypatch.setattr(relations, "gather", lambda tree: tree)
    assert abs(over_devices().mean() / value(name, seen) - 1) > 0.02


def test_a_text_without_tokens_has_a_mean_of_zeros():
    seen = signals(batch=(2, 3))
    seen = replace(seen, mask=jnp.asarray([[1.0, 1, 0], [0, 0, 0]]))
    rows = relations._to_rows(jnp.ones((2, 3, 4)), seen, flat=False)
    assert_close(rows, [[1.0] * 4, [0.0] * 4])
