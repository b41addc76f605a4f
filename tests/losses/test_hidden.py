"""Tests of the loss `hidden`: distances over pairs of layers, projectors, padding, and layer maps by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals, single
from checks import assert_close, float64
from terms import build_loss
from terms import loss_values as values

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Outputs, Signals
from jaxdistill.losses.hidden.hidden import cosine_distance, mean_squared_distance
from jaxdistill.losses.hidden.layers import layer_pairs

KEY = jax.random.key(0)


# Hidden states


def mse(student, teacher):
    return ((float64(student) - float64(teacher)) ** 2).mean(-1)


def cosine(student, teacher):
    s, t = float64(student), float64(teacher)
    return 1 - (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)


@pytest.mark.parametrize("distance", [mse, cosine], ids=["mse", "cosine"])
@pytest.mark.parametrize(("batch", "extent"), [((6,), ()), ((2, 3), ()), ((6,), (2, 3))])
def test_hidden_is_the_mean_over_its_pairs_and_the_extent(distance, batch, extent):
    seen = signals(batch=batch, extent=extent)  # 2 layers learn from 4: (1, 2) and (2, 4)
    student, teacher = seen.student.hidden_states, seen.teachers[0].hidden_states
    pairs = [distance(student[1], teacher[2]), distance(student[2], teacher[4])]
    expected = np.mean([pair.mean(tuple(range(len(batch), pair.ndim))) for pair in pairs], axis=0)
    name = distance.__name__
    assert_close(values(f"hidden(projector='none', distance='{name}')", seen), expected)
    assert_close(
        values(f"hidden('last', 'none', '{name}')", seen), pairs[1].mean(tuple(range(len(batch), pairs[1].ndim)))
    )


def test_hidden_compares_unlike_extents_by_their_means():
    seen = signals(extent=(4, 4))
    coarse = signals(seed=1, extent=(2, 2)).teachers
    mean = lambda outputs, layer: np.asarray(outputs.hidden_states[layer]).mean((1, 2))
    expected = mse(mean(seen.student, 2), mean(coarse[0], 4))
    assert_close(values("hidden(layers='last', projector='none')", replace(seen, teachers=coarse)), expected)


def test_a_projector_learns_to_undo_what_keeps_student_and_teacher_apart():
    """Check that the right kernels give a loss of 0 if the teacher's states are linear maps of the student's."""
    seen = signals(batch=(20,), width=3)
    kernel, states = (
        np.float32(np.random.default_rng(0).normal(size=(3, 7))),
        jax.device_get(seen.student.hidden_states),
    )
    taught = replace(
        seen.teachers[0],
        hidden_states=tuple(single(states[i] @ kernel) for i in (0, 0, 1, 1, 2)),
    )
    seen = replace(seen, teachers=(taught,))
    term = build_loss("hidden")
    params, _ = term.init(KEY, seen)
    assert {name: x.shape for name, x in params.items()} == {"0/kernel": (3, 7), "1/kernel": (3, 7)}
    assert not np.array_equal(params["0/kernel"], params["1/kernel"])
    assert values("hidden", seen, params).mean() > 1
    assert_close(values("hidden", seen, dict.fromkeys(params, kernel)), np.zeros(20))


def test_hidden_learns_from_the_teacher_that_it_names():
    seen = signals(depths=(4, 3))
    other = replace(seen, teachers=seen.teachers[1:])
    spec = "hidden(layers='last', projector='none', teacher={})"
    assert_close(values(spec.format(1), seen), values(spec.format(0), other))
    assert_close(values(spec.format(-1), seen), values(spec.format(0), other))
    with pytest.raises(ValueError, match="no teacher 2"):
        values(spec.format(2), seen)


def test_unlike_widths_without_a_projector_are_refused_with_the_cure():
    seen = replace(signals(width=4), teachers=signals(width=5).teachers)
    with pytest.raises(ValueError, match=r"student 4, teacher 5.*use projector='linear'"):
        values("hidden(projector='none')", seen)


def test_distances_by_hand():
    a, b = np.float32([[3.0, 4.0], [1.0, 0.0]]), np.float32([[4.0, 3.0], [0.0, 2.0]])
    assert_close(jax.jit(mean_squared_distance)(a, b), [1.0, 2.5])
    cosine = jax.jit(cosine_distance)
    assert_close(cosine(a, b), [1 - 24 / 25, 1.0])
    assert_close(cosine(a, 7 * a), [0.0, 0.0])


def test_the_cosine_of_a_zero_vector_is_0_with_no_gradient():
    both = jax.jit(jax.value_and_grad(lambda x: cosine_distance(x, jnp.ones((1, 3))).sum()))
    distance, gradient = both(np.zeros((1, 3), np.float32))
    assert distance == 1 and not np.any(gradient)


def padded(seen: Signals, padding: int) -> Signals:
    """Return the same texts with masked positions behind them, whose hidden states are 7."""

    def longer(outputs: Outputs) -> Outputs:
        fill = lambda x: np.pad(x, ((0, 0), (0, padding), (0, 0)), constant_values=7)
        return replace(outputs, hidden_states=tuple(map(fill, outputs.hidden_states)))

    real = np.pad(seen.batch["attention_mask"], ((0, 0), (0, padding)))
    teachers = tuple(map(longer, seen.teachers))
    return replace(seen, student=longer(seen.student), teachers=teachers, batch=seen.batch | {"attention_mask": real})


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_hidden_does_not_see_padding(distance):
    lengths = np.array([3, 1, 5, 4])
    text = signals(batch=(4,), extent=(5,), width=3)
    text = replace(text, batch=text.batch | {"attention_mask": (np.arange(5) < lengths[:, None]).astype(np.int32)})
    spec = f"hidden(projector='none', distance='{distance}', layers='last')"
    assert_close(values(spec, padded(text, 5)), values(spec, text))
    student, teacher = (np.asarray(x.hidden_states[-1]) for x in (text.student, text.teachers[0]))
    apart = float64(jax.jit(mean_squared_distance if distance == "mse" else cosine_distance)(student, teacher))
    by_hand = [apart[i, :n].mean() for i, n in enumerate(lengths.tolist())]
    assert_close(values(spec, text), by_hand)


def test_unlike_extents_are_averaged_without_padding_too():
    text = signals(batch=(2,), extent=(4,), width=3)
    real = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.int32)
    pooled = signals(seed=1, batch=(2,), extent=(1,), width=3)
    seen = replace(text, teachers=pooled.teachers, batch=text.batch | {"attention_mask": real})
    states, teacher = (np.asarray(x.hidden_states[-1]) for x in (text.student, pooled.teachers[0]))
    means = np.stack([states[0, :2].mean(0), states[1, :3].mean(0)])
    expected = jax.jit(mean_squared_distance)(means, teacher[:, 0])
    assert_close(values("hidden(projector='none', layers='last')", seen), expected)


# Layer maps: layers count from 1, 0 is the embedding


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "pairs"),
    [
        ("uniform", 4, 12, [(1, 3), (2, 6), (3, 9), (4, 12)]),
        ("uniform", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)]),
        ("uniform", 3, 3, [(1, 1), (2, 2), (3, 3)]),
        ("uniform", 3, 2, [(1, 1), (2, 1), (3, 2)]),
        ("uniform", 12, 2, [(i, 1) for i in range(1, 9)] + [(i, 2) for i in range(9, 13)]),
        ("uniform", 1, 12, [(1, 12)]),
        ("last", 4, 12, [(4, 12)]),
        ("last", 1, 1, [(1, 1)]),
        ("6-9", 4, 12, [(2, 6), (2, 7), (3, 8), (3, 9)]),
        ("6-9", 12, 12, [(6, 6), (7, 7), (8, 8), (9, 9)]),
        ("12-12", 4, 12, [(4, 12)]),
        ("1-1", 4, 12, [(1, 1)]),
        (((1, 2), (2, 4)), 4, 12, [(1, 2), (2, 4)]),
        (((0, 0), (4, 1)), 4, 12, [(0, 0), (4, 1)]),
        (((-1, -1), (-2, -5)), 4, 12, [(4, 12), (3, 8)]),
        (((-5, -13),), 4, 12, [(0, 0)]),
    ],
)
def test_layer_maps_by_hand(layers, student, teacher, pairs):
    assert layer_pairs(layers, student + 1, teacher + 1) == pairs


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ("6-13", "teacher has no layer 13; it has layers 0 .* to 12"),
        ("9-6", "unknown layer map '9-6'"),
        ("first", "unknown layer map 'first'"),
        ("", "no layers are named"),
        ("-1", "unknown layer map '-1'"),
        ((), "no layers are named"),
        (((5, 1),), "student has no layer 5; it has layers 0 .* to 4"),
        (((-6, 1),), "student has no layer -6"),
        (((1, 13),), "teacher has no layer 13"),
        (((1, -14),), "teacher has no layer -14"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused(layers, problem):
    with pytest.raises(ValueError, match=problem):
        layer_pairs(layers, 5, 13)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="at least an embedding and a layer"):
        layer_pairs("last", 1, 13)


def test_a_misspelt_layer_map_fails_before_any_model_exists():
    with pytest.raises(ConfigError, match="unknown layer map 'unifrom'"):
        build_loss("hidden(layers='unifrom')")
