"""Tests of sparse logits of a teacher: top-k selection, random draws, storage, and the losses that read them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals
from checks import assert_close, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Factored, Outputs, SparseLogits
from jaxdistill.data import store
from jaxdistill.losses.logits.kd import kl_divergence, kl_to_sparse
from jaxdistill.teachers.codec import Encoding, decode, encode
from jaxdistill.teachers.sparse_logits import (
    _first_above,
    draw_classes,
    draw_keys,
    logits_of_draws,
    pack_classes,
    unpack_classes,
)
from jaxdistill.teachers.top_k import top_k

KEY = jax.random.key(0)
QWEN = 151_936


def drawn(seed: int, *shape: int, scale: float = 3.0) -> np.ndarray:
    return np.float32(scale * np.random.default_rng(seed).normal(size=shape))


def keys(rows: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


# Tiled selection


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 3000),
    k=st.integers(1, 40),
    levels=st.sampled_from([2, 7, 100_000]),
    holes=st.booleans(),
    seed=st.integers(0, 9),
)
def test_tiled_selection_is_top_k_with_the_same_indices_among_equals(size, k, levels, holes, seed):
    k, draw = min(k, size), np.random.default_rng(seed)
    x = draw.integers(0, levels, (2, size)).astype(np.float32)
    x = np.where(draw.random((2, size)) < 0.9, -np.inf, x) if holes else x
    assert_same(*both(k)(x))


def both(k: int):
    """Return a compiled function that computes both the tiled top-k selection and JAX's own."""
    return jax.jit(lambda x: (top_k(x, k), tuple(jax.lax.top_k(x, k))))


def test_tiled_selection_of_a_vocabulary_has_fewer_candidates_than_classes():
    x = drawn(1, 2, 3, QWEN).round(1)  # 200 different values, so that many are equal
    assert_same(*both(128)(x))
    program = jax.make_jaxpr(lambda x: top_k(x, 128))(x)
    sizes = [each.invars[0].aval.shape[-1] for each in program.jaxpr.eqns if each.primitive.name == "top_k"]
    assert len(sizes) > 2 and max(sizes) < QWEN / 30


# Draws


def test_a_class_is_drawn_as_often_as_its_probability_says():
    logits = drawn(2, 600)
    logits[[0, 599]] = -np.inf
    found = np.asarray(jax.jit(draw_classes, static_argnums=2)(np.tile(logits, (4000, 1)), keys(4000), 16))
    assert (np.diff(found) >= 0).all()
    p = softmax(np.float64(logits))
    counts = np.stack([(found == c).sum(1) for c in range(600)])
    error = counts.mean(1) - 16 * p
    assert (np.abs(error) < 5 * counts.std(1) / np.sqrt(4000) + 1e-3).all()
    assert counts[p == 0].sum() == 0
    assert counts.var(1).sum() < 0.95 * (16 * p * (1 - p)).sum()  # independent draws would have a larger variance


@pytest.mark.parametrize("logits", [[-jnp.inf] * 300 + [0.0], [0.0] + [-jnp.inf] * 300, [0.0] * 255 + [88.0]])
def test_nothing_impossible_is_drawn(logits):
    probabilities = lambda x, keys: jnp.take_along_axis(jax.nn.softmax(x), draw_classes(x, keys, 100), axis=-1)
    assert np.all(jax.jit(probabilities)(np.float32([logits]), keys(1)) > 0)


def test_each_record_and_token_has_a_key_of_its_own_whatever_its_batch():
    data = jax.jit(lambda records: jax.random.key_data(draw_keys(records, (len(records), 4))))
    whole = np.asarray(data(np.arange(6)))
    assert_same(whole[2:4], data(np.arange(2, 4)))
    assert len({tuple(key) for key in whole.reshape(24, -1).tolist()}) == 24


def test_a_class_that_is_drawn_twice_stands_once_with_its_share():
    few = jax.jit(lambda drawn: logits_of_draws(drawn, 9, 2.0))(np.int32([[2, 2, 2, 5, 6, 6]]))
    assert few.classes.tolist() == [[2, 9, 9, 5, 6, 9]]
    assert_close(softmax(np.asarray(dense(few))[0] / 2.0), np.array([0, 0, 3, 0, 0, 1, 2, 0, 0]) / 6)


dense = jax.jit(SparseLogits.dense)


def gradients_of_draws(renormalised: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the student's gradients of kd with many caches, `[caches, classes]`, and that with the exact teacher."""
    caches, temperature, classes = 3000, 2.0, 40
    student, teacher = drawn(3, classes, scale=1.0), drawn(4, classes, scale=2.0)
    slope = jax.grad(lambda s, few: kl_to_sparse(s, few, temperature))

    def few_of(teachers, keys):
        if renormalised:
            most, numbers = top_k(teachers, 8)
            return SparseLogits(numbers, most, jnp.full(caches, -jnp.inf), classes)
        keep = Encoding("x", "float16", 0, (), 8, temperature)
        return decode(encode(Outputs(teachers), keep, keys), classes, 0, temperature).logits

    @jax.jit
    def gradients(student, teacher, keys):
        few = few_of(jnp.tile(teacher, (caches, 1)), keys)
        full = jax.grad(lambda s: kl_divergence(s, teacher, temperature))(student)
        return jax.vmap(slope, (None, 0))(student, few), full

    return jax.device_get(gradients(student, teacher, keys(caches)))


def within(found: np.ndarray, wanted: np.ndarray, errors: float) -> bool:
    """Return whether the mean of `found` is within `errors` standard errors of `wanted`, in the norm over classes."""
    error = np.sqrt((found.var(0) / len(found)).sum())
    return bool(np.linalg.norm(found.mean(0) - wanted) < errors * error + 1e-6)


def test_the_gradient_of_draws_is_that_of_the_whole_distribution_in_expectation():
    assert within(*gradients_of_draws(), errors=4)


def test_a_renormalised_top_k_fails_there():
    found, full = gradients_of_draws(renormalised=True)
    assert not within(found, full, errors=4)
    assert np.linalg.norm(found.mean(0) - full) > 0.05 * np.linalg.norm(full)


# Storage


@pytest.mark.parametrize("size", [300, 65_536, 65_537, QWEN, 262_144])
def test_numbers_of_classes_come_back_from_16_bits(size):
    numbers = np.sort(np.random.default_rng(5).integers(0, size, (3, 2, 300)), axis=-1)
    numbers[0, 0, :4], numbers[1, 1, -4:] = 0, size - 1
    written = jax.jit(pack_classes, static_argnums=1)(numbers.astype(np.int32), size)
    assert written["classes"].dtype == jnp.uint16 and ("pages" in written) == (size > 65_536)
    assert_same(jax.jit(unpack_classes)(written), numbers.astype(np.int32))


@pytest.mark.parametrize("count", [255, 256])
def test_numbers_that_all_lie_below_the_first_page_limit_come_back(count):
    numbers = jnp.arange(count, dtype=jnp.int32)
    assert_same(unpack_classes(pack_classes(numbers, 70_000)), numbers)


@pytest.mark.sampled("top*")
@pytest.mark.parametrize(
    ("keep", "limit"),
    [(Encoding("x", "float16", 128, ()), 650), (Encoding("x", "float16", 0, (), 128), 300)],
    ids=["top 128", "128 draws"],
)
def test_a_token_of_a_large_vocabulary_takes_few_bytes_on_disk(keep, limit, tmp_path):
    rows, length = 4, 4
    logits = drawn(6, rows, length, QWEN, scale=0.1)  # so flat that no class is drawn twice
    written = jax.device_get(
        jax.jit(lambda x, k: encode(Outputs(x), keep, k))(logits, draw_keys(jnp.arange(rows), (rows, length)))
    )
    written = {name: np.tile(x, (512, *[1] * (x.ndim - 1))) for name, x in written.items()}  # an empty file has 128 KiB
    rows, fields = 512 * rows, {name: (x.shape[1:], str(x.dtype)) for name, x in written.items()}
    manifest = store.StoreManifest(rows, rows, fields, {})
    store.write_manifest(tmp_path, manifest)
    store.write_shard(tmp_path, manifest, 0, written)
    assert (tmp_path / "00000.array_record").stat().st_size < limit * rows * length
    back = store.Store(tmp_path).__getitems__(list(range(rows)))
    assert_same({name: np.stack([row[name] for row in back]) for name in written}, written)


def test_what_is_written_in_pieces_is_what_is_written_at_once():
    head = Factored(drawn(7, 2, 12, 5), drawn(8, 5, 700), None)
    said = Outputs(head, (drawn(9, 2, 12, 5),))
    for keep in (
        Encoding("x", "float32", 9, (0,)),
        Encoding("x", "float16", 0, (0,), 9),
        Encoding("x", "float16", 0, ()),
    ):
        written = jax.jit(
            lambda said, count, k=keep: encode(said, k, draw_keys(jnp.arange(2), (2, 12)), count), static_argnums=1
        )
        once, pieces = (written(said, count) for count in (1, 3))
        assert once.keys() == pieces.keys()
        assert_close(once, pieces)


# Losses


@pytest.mark.sampled("draws-1.0")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    "keep", [Encoding("x", "float32", 5, ()), Encoding("x", "float32", 0, (), 20)], ids=["top", "draws"]
)
def test_few_classes_give_the_divergence_and_gradient_of_all(keep, temperature):
    student, teacher = drawn(10, 6, 50), drawn(11, 6, 50)
    teacher[:, ::7] = -np.inf
    kept = lambda teacher, keys: decode(encode(Outputs(teacher), keep, keys), 50, 0, temperature).logits
    few = jax.jit(kept)(teacher, keys(6))
    both = lambda f, t: jax.jit(jax.value_and_grad(lambda s, t: f(s, t, temperature).sum()))(student, t)
    assert_close(both(kl_to_sparse, few), both(kl_divergence, dense(few)), rtol=1e-5, atol=1e-6)


def test_empty_slots_beside_a_probability_of_the_rest_count_as_if_they_were_not_there():
    few = SparseLogits(np.int32([[4, 9, 2, 9]]), np.float32([[1.0, 7.0, 0.5, -3.0]]), np.float32([-1.0]), 9)
    student = drawn(10, 1, 9)
    both = lambda f, t: jax.jit(jax.value_and_grad(lambda s, t: f(s, t, 2.0).sum()))(student, t)
    assert_close(dense(few)[0], np.where(np.arange(9) == 4, 1.0, np.where(np.arange(9) == 2, 0.5, -1.0)))
    assert_close(both(kl_to_sparse, few), both(kl_divergence, dense(few)), rtol=1e-5, atol=1e-6)


@pytest.mark.sampled("hard*")
@pytest.mark.parametrize(
    "spec", ["kd(temperature=2.0)", "hard(loss=kd(temperature=2.0))", "standardized(loss=kd(temperature=2.0))"]
)
def test_a_loss_around_another_does_not_pass_by_what_it_makes_of_the_logits(spec):
    seen, term = signals(batch=(6,)), build_loss(spec)
    few = SparseLogits(*(jnp.asarray(x) for x in few_of(seen.teachers[0].logits)), 5)

    def slope(says):
        def loss(student, few):
            said = says(few)
            return term.apply({}, {}, replace(seen, student=student, teachers=(said,), teacher=said), key=KEY)[0].sum()

        return jax.jit(jax.value_and_grad(loss))(seen.student, few)

    known = slope(lambda few: replace(seen.teachers[0], logits=few).dense())
    plain = slope(lambda few: replace(seen.teachers[0], logits=few.dense()))
    assert_close(known, plain, rtol=1e-5, atol=1e-6)


def few_of(logits: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(-np.asarray(logits), axis=-1)[:, :2].astype(np.int32)
    return order, np.take_along_axis(np.asarray(logits), order, -1), np.full(len(order), -3.0, np.float32)


@pytest.mark.sampled("entropy*")
@pytest.mark.parametrize("fusion", ["single", "average", "entropy", "confidence"])
def test_an_objective_of_few_classes_is_that_of_all_in_pieces_too(fusion):
    few = SparseLogits(
        np.int32(np.sort(np.random.default_rng(0).integers(0, 99, (4, 8, 3)), axis=-1) * 3 + np.arange(3)),
        drawn(12, 4, 8, 3),
        drawn(13, 4, 8),
        300,
    )
    head = Factored(drawn(14, 4, 8, 6), drawn(15, 6, 300))
    base = signals(batch=(4, 8))
    mask = np.ones((4, 8), np.float32)
    mask[1, 3:] = 0
    base = replace(base, batch={"label": base.batch["label"]}, mask=jnp.asarray(mask))

    def loss(teacher, chunks):
        minimised = objective(
            {"kd": WeightedTerm(build_loss("kd(temperature=2.0)"))}, registry.fusions.build(fusion, ""), chunks
        )

        def value(head, teacher):
            seen = {"train": replace(base, student=Outputs(head), teachers=(Outputs(teacher),))}
            params, state = minimised.init(KEY, seen)
            return minimised.loss(params, state, seen, {"kd": jnp.ones(())}, key=KEY)[0]

        return jax.jit(jax.value_and_grad(value))(head, teacher)

    whole = loss(dense(few), 1)
    for chunks in (1, 4):
        assert_close(loss(few, chunks), whole, rtol=2e-5, atol=1e-6)


def test_what_fills_the_last_tile_is_never_chosen():
    assert_same(*both(3)(np.float32(-1.0 - np.random.default_rng(0).integers(0, 7, (2, 2999)))))


def test_a_goal_beyond_the_sum_is_the_last_place_with_mass():
    reached = jax.jit(lambda mass, goals: _first_above(mass, jnp.cumsum(mass), goals))
    assert reached(np.float32([0.5, 0.5, 0.0, 0.0]), np.float32([0.2, 1.0])).tolist() == [0, 1]
