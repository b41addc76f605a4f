"""Tests of optimisers: updates and states of Muon and Adafactor, coefficients as in optax, and weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdistill.core import registry
from jaxdistill.core.optim import optimizer

KEY = jax.random.key(0)


def draw(number, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, number), shape)


def update(spec, params, gradient, rate=1.0, steps=1):
    direction = optimizer(registry.optimizers.build(spec, "optimizer"), rate)
    state = direction.init({"student": params})
    for _ in range(steps):
        moved, state = jax.jit(direction.update)({"student": gradient}, state, {"student": params})
    return moved["student"], state


def test_muon_moves_all_directions_of_a_matrix_alike():
    shapes = {"a/kernel": (12, 5), "wide/kernel": (6, 20), "blocks/up/kernel": (3, 9, 4), "conv/kernel": (3, 3, 4, 6)}
    stretched = lambda n, shape: draw(n, *shape) * jnp.geomspace(1, 20, shape[-1])
    gradient = {name: stretched(n, shape) for n, (name, shape) in enumerate(shapes.items())}
    moved, _ = update("muon(momentum=0.0)", jax.tree.map(jnp.zeros_like, gradient), gradient)
    for name, x in moved.items():
        layers = (3, 9, 4) if name.startswith("blocks") else (1, -1, x.shape[-1])
        for layer, slope in zip(np.reshape(x, layers), np.reshape(gradient[name], layers), strict=True):
            sizes, before = (np.linalg.svd(each, compute_uv=False) for each in (layer, slope))
            assert sizes.max() < 2.0 * sizes.min() and before.max() > 5 * before.min(), name
            assert np.sqrt((layer**2).mean()) == pytest.approx(0.2, rel=0.3)
            assert (layer * slope).sum() < 0  # downhill


def test_muon_leaves_tables_heads_and_vectors_to_adam():
    shapes = {
        "embed/embedding": (9, 4),
        "head/kernel": (4, 9),
        "norm/scale": (4,),
        "up/kernel": (4, 4),
        "up/bias": (4,),
    }
    gradient = {name: draw(n, *shape) for n, (name, shape) in enumerate(shapes.items())}
    params = jax.tree.map(jnp.zeros_like, gradient)
    moved, _ = update("muon", params, gradient, steps=3)
    adam, _ = update("adamw", params, gradient, steps=3)
    for name in shapes:
        is_same = np.allclose(moved[name], adam[name], rtol=1e-5)
        assert is_same == (name != "up/kernel"), name


def test_adafactor_is_the_one_of_optax_without_its_rate():
    gradient = {"kernel": draw(0, 130, 140), "bias": draw(1, 7)}
    params = jax.tree.map(jnp.ones_like, gradient)
    ours, state = update("adafactor(weight_decay=0.0)", params, gradient, rate=0.01, steps=4)
    reference = optax.adafactor(0.01, multiply_by_parameter_scale=False, weight_decay_rate=None)
    theirs = reference.init(params)
    for _ in range(4):
        wanted, theirs = reference.update(gradient, theirs, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, wanted)
    assert sum(x.size for x in jax.tree.leaves(state)) < 2 * (130 + 140 + 7) + 20  # Adam would keep 36,414 values


def test_adafactor_limits_the_size_of_an_update():
    gradient = {"bias": jnp.array([1.0, 1.0, 1.0])}
    for clip in (0.5, 0.0):
        moved, _ = update(f"adafactor(clip={clip})", gradient, gradient)
        assert float(jnp.sqrt(jnp.mean(moved["bias"] ** 2))) == pytest.approx(clip or 1.0, rel=1e-3)


@pytest.mark.parametrize(
    "spec", ["muon(momentum=1.0)", "muon(rms=-1.0)", "adafactor(decay=1.0)", "adafactor(clip=-1.0)"]
)
def test_what_no_optimiser_takes_is_refused(spec):
    with pytest.raises(ValueError, match="must be at least 0"):
        registry.optimizers.build(spec, "optimizer")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("sgd(momentum=0.5, nesterov=True)", optax.trace(0.5, True)),
        ("adamw(b1=0.5, b2=0.6, eps=0.1)", optax.scale_by_adam(0.5, 0.6, 0.1)),
        ("lion(b1=0.9, b2=0.3)", optax.scale_by_lion(0.9, 0.3)),
        ("adafactor(decay=0.3, clip=0.0)", optax.scale_by_factored_rms(decay_rate=0.3)),
        ("muon(b1=0.5, b2=0.6)", optax.scale_by_adam(0.5, 0.6)),  # Muon updates biases by Adam
    ],
)
def test_every_coefficient_reaches_the_rule_of_optax(spec, expected):
    params = {"up/bias": jnp.zeros(7)}
    direction = optimizer(registry.optimizers.build(spec, "optimizer"), 1.0)
    state, other = direction.init({"student": params}), expected.init(params)
    for step in range(4):
        gradient = {"up/bias": draw(step, 7)}
        moved, state = direction.update({"student": gradient}, state, {"student": params})
        wanted, other = expected.update(gradient, other, params)
        np.testing.assert_allclose(moved["student"]["up/bias"], -wanted["up/bias"], rtol=1e-6)


def test_weight_decay_is_for_matrices_alone():
    shapes = {"kernel": (3, 2), "gate": (3,), "norm/scale": (2, 3), "norm/bias": (2, 3), "embed": (5, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    still = jax.tree.map(jnp.zeros_like, params)
    for spec in ("sgd(momentum=0.0, weight_decay=0.1)", "adamw(weight_decay=0.1)", "lion(weight_decay=0.1)"):
        moved, _ = update(spec, params, still)
        assert {name for name, x in moved.items() if np.any(x)} == {"kernel", "embed"}


def test_weights_do_not_decay_unless_it_is_asked_for():
    params = {"up/kernel": jnp.ones((3, 2))}
    for spec in ("sgd()", "sgd(nesterov=True)", "muon()", "adafactor()"):
        moved, _ = update(spec, params, jax.tree.map(jnp.zeros_like, params))
        assert not np.any(moved["up/kernel"]), spec


@pytest.mark.parametrize("spec", ["adamw(weight_decay=0.1)", "muon(weight_decay=0.1)", "adafactor(weight_decay=0.1)"])
def test_weight_decay_is_apart_from_the_update(spec):
    """Check that weights decay by their own share where the gradient is 0 (Loshchilov and Hutter, 2019)."""
    params = {"up/kernel": jnp.arange(6.0).reshape(3, 2), "up/bias": jnp.ones(2)}
    moved, _ = update(spec, params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(moved["up/kernel"], -0.1 * params["up/kernel"], atol=1e-6)
    assert not moved["up/bias"].any()
