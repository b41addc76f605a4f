"""Tests of projectors of hidden states: maps that each kind can learn, extents, padding, and weights of layer pairs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from batches import signals, single
from checks import assert_close, assert_same
from terms import build_loss
from terms import loss_values as values

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Signals
from jaxdistill.losses.hidden.projectors import PROJECTORS

KEY = jax.random.key(0)


def taught_by(seen: Signals, image) -> Signals:
    """Set every hidden state of the teacher to the function `image` of the student's last."""
    states = single(image(np.asarray(seen.student.hidden_states[-1])))
    return replace(seen, teachers=(replace(seen.teachers[0], hidden_states=(states,) * 5),))


def left_after(spec: str, seen: Signals, steps: int = 150) -> float:
    """Train only the projector, and return the loss that is left."""
    term, update = build_loss(spec), optax.adam(0.03)
    loss = lambda params: jnp.mean(term.apply(params, {}, seen, key=KEY)[0])

    @jax.jit
    def train(params):
        def one(carry, _):
            updates, memory = update.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), memory), None

        return loss(jax.lax.scan(one, (params, update.init(params)), None, steps)[0][0])

    return float(train(term.init(KEY, seen)[0]))


def test_a_perceptron_undoes_what_no_linear_projector_can():
    bent = taught_by(signals(batch=(64,), width=3), lambda x: np.concatenate([np.abs(x), x], axis=-1))
    linear, mlp = (left_after(f"hidden(layers='last', projector='{kind}')", bent) for kind in ("linear", "mlp"))
    assert linear > 0.1 and mlp < 0.1 * linear


def test_a_convolution_undoes_a_shift_that_no_single_position_can():
    shift = lambda x: np.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    shifted = taught_by(signals(batch=(16,), extent=(4, 4), width=3), shift)
    linear, conv = (left_after(f"hidden(layers='last', projector='{kind}')", shifted) for kind in ("linear", "conv"))
    assert linear > 0.5 and conv < 0.1 * linear


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("linear", {"kernel": (3, 5)}),
        ("mlp", {"up/kernel": (3, 5), "up/bias": (5,), "down/kernel": (5, 5), "down/bias": (5,)}),
        ("conv", {"kernel": (3, 3, 3, 5)}),
        ("none", {}),
    ],
)
def test_a_projectors_params_are_for_one_pair_and_its_outputs_as_large_as_its_inputs(kind, shapes):
    student = np.float32(np.random.default_rng(0).normal(size=(500, 6, 6, 3)))
    target = np.zeros((500, 6, 6, 5), np.float32)
    params = jax.jit(PROJECTORS[kind].init, static_argnums=3)(KEY, student, target, 1)
    assert {name: x.shape for name, x in params.items()} == shapes
    out = jax.jit(PROJECTORS[kind].apply)(params, student, target)
    assert out.shape == (student if kind == "none" else target).shape
    assert 0.4 < np.std(out) < 1.6


@pytest.mark.parametrize(("ours", "theirs"), [((4, 6), (4, 6)), ((4, 6), (2, 3)), ((4, 6), (4, 2)), ((9,), (3,))])
def test_a_convolution_brings_an_extent_to_a_divisor_of_it(ours, theirs):
    seen = replace(signals(extent=ours), teachers=signals(extent=theirs, width=5).teachers)
    assert values("hidden(layers='last', projector='conv')", seen).shape == (6,)


@pytest.mark.parametrize(("ours", "theirs"), [((4, 4), (3, 3)), ((2, 2), (4, 4)), ((4, 4), (4,)), ((4,), ())])
def test_a_convolution_refuses_other_extents_with_the_cure(ours, theirs):
    seen = replace(signals(extent=ours), teachers=signals(extent=theirs).teachers)
    with pytest.raises(
        ValueError, match=r"needs a teacher's extent that divides the student's.*use projector='linear'"
    ):
        values("hidden(layers='last', projector='conv')", seen)


def test_a_convolution_without_an_extent_is_refused():
    with pytest.raises(ValueError, match="needs hidden states with an extent; use projector='linear'"):
        values("hidden(projector='conv')", signals())


def test_a_convolution_over_a_text_does_not_carry_padding_into_its_tokens():
    text, lengths = signals(batch=(4,), extent=(6,), width=3), np.array([[3], [1], [6], [4]])
    real = np.arange(6) < lengths
    text = replace(text, batch=text.batch | {"attention_mask": real.astype(np.int32)})
    fill = lambda said, filler: replace(
        said, hidden_states=tuple(np.where(real[..., None], x, filler) for x in said.hidden_states)
    )
    spec = "hidden(layers='last', projector='conv')"
    clean, spoilt = (
        values(spec, replace(text, student=fill(text.student, filler), teachers=(fill(text.teachers[0], filler),)))
        for filler in np.float32([0.0, np.nan])
    )
    assert_same(spoilt, clean)


# Weights


def test_weights_say_each_pairs_share():
    seen = signals()
    one, other = (values(f"hidden((({i}, {j}),), 'none')", seen) for i, j in ((1, 2), (2, 4)))
    spec = "hidden('uniform', 'none', weights={})"
    assert_close(values(spec.format("(1, 3)"), seen), 0.25 * one + 0.75 * other)
    assert_close(values(spec.format("(0, 0.1)"), seen), other)
    assert_close(values(spec.format("(2, 2)"), seen), values("hidden('uniform', 'none')", seen))


def test_weights_must_fit_the_pairs():
    for weights in ("(-1, 2)", "(0, 0)"):
        with pytest.raises(ConfigError, match="at least 0, and not all 0"):
            build_loss(f"hidden(weights={weights})")
    with pytest.raises(ValueError, match="3 weights for 2 pairs of layers"):
        values("hidden(weights=(1, 2, 3))", signals())


def test_projectors_of_different_pairs_differ():
    params, _ = build_loss("hidden(projector='mlp')").init(KEY, signals())
    assert len(params) == 8
    assert np.abs(params["0/up/kernel"] - params["1/up/kernel"]).max() > 0.1
