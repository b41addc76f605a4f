"""Tests of losses between hidden states with positions: published code, deliberate mistakes, and values by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, float64
from examples import slow
from terms import build_loss

from jaxdistill.core.types import Array, Outputs, Signals
from jaxdistill.losses.hidden import attention_transfer, fsp, nst, review, semckd, vid
from jaxdistill.losses.hidden.attention_transfer import attention_map
from jaxdistill.losses.hidden.extent import average_pool
from jaxdistill.losses.hidden.fsp import flow
from jaxdistill.losses.hidden.nst import squared_mmd
from jaxdistill.losses.hidden.review import hierarchical_context, resize_nearest
from jaxdistill.losses.hidden.vid import negative_log_likelihood
from jaxdistill.losses.term import unit

KEY = jax.random.key(0)
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "layer_losses.npz")


def seeing(student: tuple[Array, ...], teacher: tuple[Array, ...], **batch: Array) -> Signals:
    """Build signals with these layers, preceded by an embedding that no layer map below names."""
    rows = student[0].shape[0]
    outputs = lambda states: Outputs(jnp.zeros((rows, 2)), (states[0], *states))
    empty = {"student": {}, "teachers": ({},)}
    return Signals(outputs(student), (outputs(teacher),), None, batch, jnp.ones(rows), jnp.zeros((), int), 1.0, empty)


# Published code: its sums over layers are means here

PUBLISHED = {  # name -> (spec, the factor that makes ours its reduction)
    "attention_transfer_larger": ("attention_transfer(layers=((1, 1),))", 1),
    "attention_transfer_smaller": ("attention_transfer(layers=((1, 1),))", 1),
    "fsp": ("fsp(layers=((1, 1), (2, 2), (3, 3)))", 2),
    "nst_larger": ("nst(layers=((1, 1),))", 1),
    "nst_smaller": ("nst(layers=((1, 1),))", 1),
    "nst_two_pairs": ("nst(layers=((1, 1), (2, 2)))", 2),
    "review_equal": ("review(layers=((1, 1), (2, 2), (3, 3)))", 4),
    "review_unlike": ("review(layers=((1, 1), (2, 2), (3, 3)))", 4),
    "semckd": ("semckd(layers=((1, 1), (2, 2)))", 1),
    "vid_equal": ("vid(layers=((1, 1),))", 1),
    "vid_larger": ("vid(layers=((1, 1),))", 1),
}


def published(name: str, precision: str = "float64", gradient: bool = True) -> None:
    """Compare a term with the published code, in value and, if asked, in the gradient of all that learns."""
    spec, factor = PUBLISHED[name]
    assigned = semckd.assignment
    kept = lambda prefix: {
        k.removeprefix(f"{name}/{prefix}/"): GOLDEN[k] for k in GOLDEN if k.startswith(f"{name}/{prefix}/")
    }
    tree = lambda found: jax.tree.map(lambda x: jnp.asarray(x, precision), found)
    with jax.enable_x64(precision == "float64"), pytest.MonkeyPatch.context() as patch:
        if name == "semckd":  # published code embeds rows in another way, so its assignment is taken as given
            given = jnp.asarray(GOLDEN["semckd/assignment"], precision)
            patch.setattr(semckd, "assignment", lambda query, key: 0 * assigned(query, key) + given)
        student, teacher, params = (tree(kept(which)) for which in ("student", "teacher", "params"))
        term = build_loss(spec)
        drawn = jax.jit(term.init)(KEY, seeing(tuple(student.values()), tuple(teacher.values())))[0]
        assert all(drawn[k].shape == x.shape for k, x in params.items())
        params = drawn | params

        def loss(student, params):
            seen = seeing(tuple(student.values()), tuple(teacher.values()))
            return factor * jnp.mean(term.apply(params, {}, seen, key=KEY)[0])

        if gradient:
            value, slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(student, params)
        else:
            value, slopes = jax.jit(loss)(student, params), ({}, {})
        assert value.dtype == precision
    tolerance = 1e-12 if precision == "float64" else 1e-5
    pairs = [(value, GOLDEN[f"{name}/value"])]
    pairs += [(x, GOLDEN[f"{name}/grad/student/{k}"]) for k, x in slopes[0].items()]
    pairs += [(x, GOLDEN[f"{name}/grad/params/{k}"]) for k, x in slopes[1].items() if k in kept("params")]
    for found, said in pairs:
        assert np.abs(float64(found) - said).max() <= tolerance * max(1.0, np.abs(said).max())


@pytest.mark.sampled("vid*", "nst*", "attention*", "fsp*")
@pytest.mark.parametrize("precision", ["float64", slow("float32")])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_term_equals_the_published_code_in_value_and_gradient(name, precision):
    published(name, precision)


def smaller_is_stretched(student, teacher, batch_dims):
    larger = tuple(map(max, student.shape[batch_dims:-1], teacher.shape[batch_dims:-1]))
    return average_pool(student, larger), average_pool(teacher, larger)


def unweighted_context(student, teacher):
    sizes = [s for s in (4, 2, 1) if s < student.shape[-2]]
    maps = [(student, teacher), *((average_pool(student, (s, s)), average_pool(teacher, (s, s))) for s in sizes)]
    return jnp.mean(jnp.stack([jnp.mean((a - b) ** 2, (-3, -2, -1)) for a, b in maps]), 0)


def by_unbiased_variance(x, valid, params, name):
    axes = tuple(range(x.ndim - 1))
    y = (x - x.mean(axes)) / jnp.sqrt(x.var(axes, ddof=1) + 1e-5)
    return y * params[f"{name}/scale"] + params[f"{name}/bias"]


def without_unit(x, axis):
    return x


def over_one_variance(predicted, teacher, variance):
    return negative_log_likelihood(predicted, teacher, jnp.full_like(variance, variance.mean()))


TWINS = {  # mistake -> (module, function, its broken version, the case that catches it)
    "the mean over channels before the square": (
        attention_transfer,
        "attention_map",
        lambda x: unit(x.mean(-1) ** 2, -1),
        "attention_transfer_larger",
    ),
    "energy that is not normalised": (attention_transfer, "unit", without_unit, "attention_transfer_larger"),
    "the smaller map stretched": (
        attention_transfer,
        "pool_to_same_extent",
        smaller_is_stretched,
        "attention_transfer_smaller",
    ),
    "patterns that are not normalised": (nst, "unit", without_unit, "nst_larger"),
    "patterns normalised over the channels": (nst, "unit", lambda x, axis: unit(x, -1), "nst_larger"),
    "a flow that is a sum": (fsp, "flow", lambda a, b: flow(a, b) * a.shape[-2], "fsp"),
    "a flow divided by the rows": (fsp, "flow", lambda a, b: flow(a, b) / a.shape[0], "fsp"),
    "one variance for all channels": (vid, "negative_log_likelihood", over_one_variance, "vid_equal"),
    "contexts of one weight": (review, "hierarchical_context", unweighted_context, "review_equal"),
    "the unbiased variance": (review, "batch_norm", by_unbiased_variance, "review_equal"),
    "deeper layers averaged up": (review, "resize_nearest", average_pool, "review_unlike"),
    "layers of the student added": (semckd, "assigned_mean", lambda d, w: (d * w).sum((-2, -1)), "semckd"),
    "regressors normalised by the unbiased variance": (semckd, "batch_norm", by_unbiased_variance, "semckd"),
}


LONG = ("semckd", "review_equal", "review_unlike")  # these take long to compile


@pytest.mark.parametrize("wrong", [slow(name) if twin[-1] in LONG else name for name, twin in TWINS.items()])
def test_a_broken_twin_is_caught_by_the_published_code(wrong, monkeypatch):
    module, name, twin, catches = TWINS[wrong]
    monkeypatch.setattr(module, name, twin)
    with pytest.raises(AssertionError):
        published(catches, gradient=False)


# By hand


def test_attention_by_hand():
    states = jnp.array([[[3.0, 1.0], [1.0, 1.0]]])  # two positions with energies (9 + 1) / 2 and (1 + 1) / 2
    assert_close(attention_map(states), [[5 / np.sqrt(26), 1 / np.sqrt(26)]])
    assert_close(attention_map(-7 * states), attention_map(states))


def test_patterns_in_another_order_or_of_another_size_are_the_same():
    draw = np.random.default_rng(0)
    states = jnp.asarray(draw.normal(size=(2, 6, 4)), jnp.float32)
    other = states[..., jnp.array([2, 0, 3, 1])] * jnp.array([0.1, 3.0, -2.0, 5.0])
    assert_close(squared_mmd(other, states), np.zeros(2))
    # one channel each, at right angles: 1 + 1 - 2 * 0
    assert_close(squared_mmd(jnp.array([[[2.0], [0.0]]]), jnp.array([[[0.0], [3.0]]])), [2.0])


def test_flows_by_hand():
    first, second = jnp.array([[[1.0, 2.0], [3.0, 4.0]]]), jnp.array([[[5.0], [7.0]]])
    assert_close(flow(first, second), [[[(5 + 21) / 2], [(10 + 28) / 2]]])


def test_the_best_variance_is_the_mean_square_of_what_cannot_be_predicted():
    draw = np.random.default_rng(0)
    predicted, teacher = jnp.asarray(draw.normal(size=(2, 50, 3)) * np.array([1, 2, 5]), jnp.float32)
    best = jnp.mean((predicted - teacher) ** 2, 0)
    value = lambda variance: negative_log_likelihood(predicted, teacher, variance).mean()
    assert_close(jax.grad(value)(best), np.zeros(3))
    assert_close(value(best), 0.5 + 0.5 * np.log(float64(best)).mean())


def test_contexts_by_hand():
    """Check that a difference whose mean is 0 counts at full size only, and a constant one at all sizes."""
    teacher = jnp.zeros((1, 8, 8, 2))
    board = jnp.asarray(np.indices((8, 8)).sum(0) % 2 * 2.0 - 1.0)[None, :, :, None] * jnp.ones(2)
    assert_close(hierarchical_context(3 * board, teacher), [9 / (1 + 1 / 2 + 1 / 4 + 1 / 8)])
    assert_close(hierarchical_context(teacher + 3, teacher), [9.0])
    assert_close(hierarchical_context(teacher[:, :1, :1] + 3, teacher[:, :1, :1]), [9.0])


def test_review_compares_maps_at_full_size_and_at_4_2_and_1():
    a, b = np.random.default_rng(0).normal(size=(2, 1, 8, 8, 3))
    pooled = lambda x, size: x.reshape(1, size, 8 // size, size, 8 // size, 3).mean((2, 4))
    terms = {
        weight: np.mean((pooled(a, size) - pooled(b, size)) ** 2)
        for weight, size in zip((1, 1 / 2, 1 / 4, 1 / 8), (8, 4, 2, 1), strict=True)
    }
    by_hand = sum(weight * term for weight, term in terms.items()) / sum(terms)
    assert_close(hierarchical_context(jnp.asarray(a), jnp.asarray(b)), [by_hand])


def test_review_projects_to_its_width_or_the_channels_of_the_deepest_layer():
    layer = lambda size, channels: jnp.ones((2, size, size, channels))
    seen = seeing((layer(4, 3), layer(2, 7)), (layer(4, 5), layer(2, 6)))
    for width, inner in ((512, 7), (4, 4)):
        shapes = jax.eval_shape(build_loss(f"review(layers=((1, 1), (2, 2)), width={width})").init, KEY, seen)[0]
        found = {name: shapes[f"{name}/kernel"].shape for name in ("0/enter", "1/enter", "0/leave", "0/gate")}
        assert found == {
            "0/enter": (3, inner),
            "1/enter": (7, inner),
            "0/leave": (3, 3, inner, 5),
            "0/gate": (2 * inner, 2),
        }
        assert shapes["0/gate/bias"].shape == (2,)  # one for each of the two maps that are fused


def test_review_compares_the_mean_of_the_last_pair_too(monkeypatch):
    draw = np.random.default_rng(0)
    layer = lambda size, channels: jnp.asarray(draw.normal(size=(2, size, size, channels)), jnp.float32)
    seen, targets = seeing((layer(4, 3), layer(2, 7)), (layer(4, 5), layer(2, 5))), []
    term = build_loss("review(layers=((1, 1), (2, 2)))")
    params, state = term.init(KEY, seen)
    monkeypatch.setattr(
        review, "hierarchical_context", lambda x, target: targets.append(target) or target.mean((1, 2, 3))
    )
    term.apply(params, state, seen, key=KEY)
    shallow, deep = seen.teachers[0].hidden_states[1:]  # the first one is the embedding
    expected = [deep.mean((1, 2), keepdims=True), deep, shallow]
    for found, wanted in zip(targets, expected, strict=True):
        assert_close(found, wanted)


def test_pooling_and_nearest_neighbours_by_hand():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    assert_close(average_pool(x, (2, 1)).ravel(), [1.0, 3.0])  # means of 0 to 2 and of 2 to 4
    assert_close(average_pool(x, (3, 1)).ravel(), [0.5, 2.0, 3.5])
    assert_close(resize_nearest(x, (2, 1)).ravel(), [0.0, 2.0])
    assert_close(resize_nearest(x[:, :2], (5, 1)).ravel(), [0.0, 0.0, 0.0, 1.0, 1.0])
