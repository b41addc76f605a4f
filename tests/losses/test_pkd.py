"""Tests of the loss `pkd`: the published reduction in float64, layer maps by hand, and refused states."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals
from checks import assert_close
from terms import compiled_loss
from terms import loss_values as values

from jaxdistill.losses.hidden.layers import layer_pairs


def published(student: list[np.ndarray], teacher: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the mean squared difference of unit vectors over rows, layers and width; its gradient in the student."""
    ours, theirs = (np.stack(side, axis=1) for side in (student, teacher))
    size = np.linalg.norm(ours, axis=2, keepdims=True)
    unit, target = ours / size, theirs / np.linalg.norm(theirs, axis=2, keepdims=True)
    slope = 2 * (unit - target) / unit.size
    along = unit * np.sum(unit * slope, axis=2, keepdims=True)
    return np.mean((unit - target) ** 2), (slope - along) / size


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_pkd_is_the_published_reduction_in_value_and_gradient(precision):
    with jax.enable_x64(precision == "float64"):
        seen = signals(extent=(5,), width=7)
        wide = lambda said: replace(said, hidden_states=tuple(np.asarray(x, precision) for x in said.hidden_states))
        seen = replace(seen, student=wide(seen.student), teachers=tuple(map(wide, seen.teachers)))
        spec = "pkd(layers=((1, 1), (2, 3)))"
        loss = lambda student, seen: jnp.mean(compiled_loss(spec)(replace(seen, student=student), None))
        value, slope = jax.device_get(jax.jit(jax.value_and_grad(loss))(seen.student, seen))
        first = lambda said, layers: [np.asarray(said.hidden_states[n], np.float64)[:, 0] for n in layers]
        said, gradient = published(first(seen.student, (1, 2)), first(seen.teachers[0], (1, 3)))
        tolerance = 1e-12 if precision == "float64" else 1e-5
        assert abs(float(value) - said) <= tolerance
        for n, layer in enumerate((1, 2)):
            assert np.abs(np.float64(slope.hidden_states[layer][:, 0]) - gradient[:, n]).max() <= tolerance
            assert not np.asarray(slope.hidden_states[layer][:, 1:]).any()
        assert np.abs(gradient).max() > 1e-3


def test_lengths_do_not_matter_but_directions_do():
    seen = signals(extent=(5,), depths=(2,))
    scaled = lambda size: replace(
        seen,
        student=replace(
            seen.teachers[0], hidden_states=tuple(size * np.asarray(x) for x in seen.teachers[0].hidden_states)
        ),
    )
    assert_close(values("pkd", scaled(3.0)), np.zeros(6))
    assert_close(values("pkd", scaled(-3.0)), np.full(6, 4 / 4))  # the squared distance is 4, over a width of 4


def test_of_running_text_every_token_is_matched():
    seen = signals(batch=(2, 3))
    flat = lambda said: replace(said, hidden_states=tuple(np.reshape(x, (6, 4)) for x in said.hidden_states))
    rows = replace(
        seen, student=flat(seen.student), teachers=tuple(map(flat, seen.teachers)), mask=np.ones(6, np.float32)
    )
    assert_close(values("pkd", seen).reshape(6), values("pkd", rows))


def test_hidden_states_without_a_first_token_are_refused():
    with pytest.raises(ValueError, match=r"of extent \[2, 3\] have no first token; use the loss 'hidden'"):
        values("pkd", signals(extent=(2, 3)))


def test_unlike_widths_need_a_projector():
    seen = replace(signals(width=4), teachers=signals(width=5).teachers)
    with pytest.raises(ValueError, match=r"student 4, teacher 5.*use projector='linear'"):
        values("pkd", seen)
    assert values("pkd(projector='linear')", seen).shape == (6,)


def test_the_map_skip_is_the_papers():
    assert layer_pairs("skip", 7, 13) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert layer_pairs("skip", 4, 13) == [(1, 4), (2, 8)]
    with pytest.raises(ValueError, match="the student has no other; use 'last'"):
        layer_pairs("skip", 2, 13)
    seen = signals(extent=(5,))
    assert_close(values("pkd", seen), values("pkd(layers='skip')", seen))
    assert not np.allclose(values("pkd", seen), values("pkd(layers='uniform')", seen))
