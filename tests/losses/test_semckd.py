"""Tests of the assignment of the loss `semckd`, which differs from the published one: formula, batch sizes, training.

`test_layer_losses.py` compares the rest of the loss with the published code.
"""

from dataclasses import replace

import batches
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batches import signals
from checks import assert_close
from terms import build_loss, loss_values

from jaxdistill.core.types import Array, Outputs, Signals
from jaxdistill.losses.hidden import semckd

KEY = jax.random.key(0)
SPEC = "semckd(size=3)"


def float64(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def values(seen: Signals, params) -> np.ndarray:
    return loss_values(SPEC, seen, params)


def weights_of(seen: Signals, params, spec: str = SPEC) -> np.ndarray:
    """Return the assignment, `[rows, student layers, teacher layers]`, that the term computes."""
    term, mean = build_loss(spec), semckd.assigned_mean

    def seen_on_the_way(seen: Signals) -> Array:
        found = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(semckd, "assigned_mean", lambda table, weights: found.append(weights) or mean(table, weights))
            term.apply(params, {}, seen, key=KEY)
        return found[0]

    return np.asarray(jax.jit(seen_on_the_way)(seen))


def drawn(seen: Signals):
    return jax.jit(lambda seen: build_loss(SPEC).init(KEY, seen)[0])(seen)


def test_the_assignment_is_that_of_float64():
    seen = signals(extent=(2, 3), depths=(3,))  # teacher layers 2 and 3
    params = drawn(seen)
    p = {name: float64(x) for name, x in params.items()}

    def embedded(states, name):
        rows = float64(states).reshape(6, -1)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        entries = np.maximum((rows @ rows.T)[:, :, None] * p[f"{name}/entry/kernel"][0] + p[f"{name}/entry/bias"], 0)
        e = entries.mean(1) @ p[f"{name}/mean/kernel"] + p[f"{name}/mean/bias"]
        return e / np.linalg.norm(e, axis=1, keepdims=True)

    student, teacher = seen.student.hidden_states, seen.teachers[0].hidden_states
    q = [embedded(student[layer], f"query/{n}") for n, layer in enumerate((1, 2))]
    k = [embedded(teacher[layer], f"key/{n}") for n, layer in enumerate((2, 3))]
    energy = np.einsum("ibs,jbs->bij", q, k)
    expected = np.exp(energy) / np.exp(energy).sum(-1, keepdims=True)
    assert_close(weights_of(seen, params), expected)
    # with regressors that return 0, the loss is the teacher's mean squares, under these weights
    silent = {name: 0 * np.asarray(x) if name.endswith("2/kernel") else x for name, x in params.items()}
    squares = np.stack([(float64(teacher[layer]) ** 2).mean((1, 2, 3)) for layer in (2, 3)], -1)
    assert_close(values(seen, silent), (expected * squares[:, None]).sum(-1).mean(-1))


def test_an_assignment_does_not_know_how_large_the_batch_is():
    """Check that repeated rows and scaled states change no weight; published inner products would change them."""
    seen = signals(extent=(2, 3), depths=(3,))
    params, twice = drawn(seen), batches.at_rows(seen, np.tile(np.arange(6), 2))
    assert_close(weights_of(twice, params), np.tile(weights_of(seen, params), (2, 1, 1)))
    assert_close(values(twice, params), np.tile(values(seen, params), 2), rtol=1e-4)

    def inner_products(states, all_states):  # published code does not normalise the states
        flat = lambda x: x.reshape(x.shape[0], -1)
        return flat(states) @ flat(all_states).T

    large = lambda out: replace(out, hidden_states=tuple(30 * np.asarray(x) for x in out.hidden_states))
    scaled = replace(seen, student=large(seen.student), teachers=tuple(map(large, seen.teachers)))
    assert_close(weights_of(scaled, params), weights_of(seen, params), rtol=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semckd, "pairwise_cosine", inner_products)
        assert np.abs(weights_of(scaled, params) - weights_of(seen, params)).max() > 1e-2


def trained(spec: str, seen: Signals, steps: int = 60):
    """Train only a term's parameters; return them before and after training."""
    term, update = build_loss(spec), optax.adam(0.02)
    loss = lambda params: term.apply(params, {}, seen, key=KEY)[0].mean()

    def step(carry, _):
        params, state = carry
        change, state = update.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, change), state), None

    params = jax.jit(lambda: term.init(KEY, seen)[0])()
    return params, jax.jit(lambda p: jax.lax.scan(step, (p, update.init(p)), None, steps)[0][0])(params)


def test_an_assignment_goes_where_matching_is_easy_which_may_be_a_layer_that_says_nothing():
    draw = np.random.default_rng(0)
    states, noise = draw.normal(size=(2, 32, 3))
    taught = states @ draw.normal(size=(3, 3))
    for easy in (taught, np.zeros_like(taught)):
        outputs = lambda *layers: Outputs(jnp.zeros((32, 2)), tuple(map(batches.single, (states, *layers))))
        seen = replace(signals(batch=(32,)), student=outputs(states), teachers=(outputs(noise, easy),), batch={})
        spec = "semckd(layers=((1, 1), (1, 2)), size=3)"
        first, last = (weights_of(seen, params, spec)[..., 1].mean() for params in trained(spec, seen))
        assert last > 0.75 and last > first
        assert last < np.e**2 / (np.e**2 + 1)  # the bound for queries and keys of length 1


def test_rows_that_do_not_count_do_not_move_an_assignment_that_has_learned():
    seen = signals(extent=(2, 3), depths=(3,))
    params = {n: np.asarray(x) + 1 if n.endswith("mean/bias") else x for n, x in drawn(seen).items()}
    few = batches.at_rows(seen, np.arange(4))
    assert_close(values(replace(seen, mask=np.float32(np.arange(6) < 4)), params)[:4], values(few, params))


def test_in_a_batch_without_rows_that_count_nothing_is_matched_and_nothing_is_nan():
    seen = signals(extent=(2, 3), depths=(3,))
    params, empty = drawn(seen), replace(seen, mask=np.zeros(6, np.float32))
    loss = lambda p, given: jnp.sum(jnp.where(given.mask > 0, build_loss(SPEC).apply(p, {}, given, key=KEY)[0], 0.0))
    value, slopes = jax.jit(jax.value_and_grad(loss))(params, empty)
    assert value == 0 and all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(slopes))
