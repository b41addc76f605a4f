"""Tests of laws that hold for every registered loss, and that no registered part lacks an example to test it with."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import batches
import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import taught
from checks import all_finite, assert_close, assert_same
from examples import LOSSES, TABLES, every
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.collectives import PMAP_AXIS, ROWS, psum
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Array, Outputs, Signals
from jaxdistill.parallel.mesh import make_mesh

KEY = jax.random.key(0)


@pytest.mark.parametrize("kind", TABLES)
def test_no_part_escapes_the_laws(kind):
    parts = getattr(registry, kind).factories
    ours = {name for name, factory in parts.items() if factory.__module__.startswith("jaxdistill.")}
    ours -= {"pretrained"}  # it loads models of families that have their own lines
    assert ours == set(TABLES[kind]), f"tests/examples.py: each of the {kind} needs a line"
    for name in ours:
        assert TABLES[kind][name] and all(parse(e.spec, "").name == name for e in TABLES[kind][name])


# Losses


class Law(NamedTuple):
    """Functions of one loss: its values and mean, not compiled (`eager`, `plain`) and compiled (`values`, `mean`).

    `everything` returns values, mean, and the mean's gradient in all that may learn: one program for most laws.
    """

    eager: Callable[[Signals], Any]
    plain: Callable[[Signals], Any]
    values: Callable[[Signals], Any]
    mean: Callable[[Signals], Any]
    everything: Callable[[Signals], tuple[Any, Any, Any]]


@functools.cache
def law(spec: str) -> Law:
    term = build_loss(spec)
    fusion = examples.FUSED_BY.get(parse(spec, "").name, "single")
    minimised = objective({"term": WeightedTerm(term)}, registry.fusions.build(fusion, ""))

    def values(seen):
        params, state = minimised.init(KEY, {"train": seen})
        fused, _ = minimised.fuse(params, state, seen, key=KEY, temperature=term.temperature)
        return term.apply(params["terms"]["term"], state["terms"]["term"], fused, key=KEY)[0]

    def mean(seen):
        params, state = minimised.init(KEY, {"train": seen})
        return minimised.apply(params, state, {"train": seen}, key=KEY)[0]["term"]

    def everything(seen):
        loss = lambda learned: (lambda found: (found.compute(), found))(mean(replace(seen, **learned)))
        learned = {name: getattr(seen, name) for name in ("student", "teachers", "params")}
        gradient, found = jax.grad(loss, has_aux=True)(learned)
        return values(seen), found, gradient

    return Law(values, mean, jax.jit(values), jax.jit(mean), jax.jit(everything))


def float_leaves(function, tree):
    return jax.tree.map(lambda x: function(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def noise(seed: int, tree: Any) -> Any:
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: draw.normal(size=x.shape).astype(np.float32), tree)


def on_outputs(function, seen: Signals) -> Signals:
    """Apply a function to every array of floats in the student's and the teachers' outputs."""
    return replace(seen, student=float_leaves(function, seen.student), teachers=float_leaves(function, seen.teachers))


def on_logits(function, outputs: Outputs) -> Outputs:
    return replace(outputs, logits=function(outputs.logits))


def one_hot(logits: Array) -> Array:
    return 1e4 * np.eye(logits.shape[-1], dtype=np.float32)[logits.argmax(-1)]


def without_odd_classes(logits: Array) -> Array:
    return np.where(np.arange(logits.shape[-1]) % 2 == 1, np.float32(-np.inf), logits)


HARD_CASES = {
    "random": lambda seen: seen,
    "equal": taught,
    "zeros": lambda seen: on_outputs(np.zeros_like, seen),
    "one-hot": lambda seen: replace(seen, teachers=tuple(on_logits(one_hot, t) for t in seen.teachers)),
    "huge": lambda seen: on_outputs(lambda x: 1e4 * x, seen),
    "masked": lambda seen: replace(seen, teachers=tuple(on_logits(without_odd_classes, t) for t in seen.teachers)),
}


def equally_deep(example: examples.Example, **fields) -> Signals:
    """Build signals, in numpy to compile less, of a student and a teacher of 2 layers, so that one can be the other."""
    return jax.device_get(batches.signals(depths=(2,), extent=example.extent or (), **fields))


@every(LOSSES)
@pytest.mark.parametrize("case", HARD_CASES)
def test_value_and_gradient_of_a_loss_are_finite(example, case):
    seen = HARD_CASES[case](equally_deep(example))
    values, _, gradient = law(example.spec).everything(seen)
    assert all_finite(values) and all_finite(gradient)


BATCHES = st.one_of(st.tuples(st.integers(1, 5)), st.tuples(st.integers(1, 3), st.integers(1, 4)))


@every(LOSSES)
@settings(max_examples=3)
@given(
    batch=BATCHES,
    extent=st.sampled_from([(), (2, 3)]),
    classes=st.integers(2, 6),
    width=st.integers(1, 5),
    depth=st.integers(2, 5),
)
def test_a_loss_gives_one_value_per_row_or_one_scalar(example, batch, extent, classes, width, depth):
    extent = extent if example.extent is None else example.extent
    drawn = lambda: batches.signals(batch=batch, extent=extent, classes=classes, width=width, depths=(depth,))
    out = jax.eval_shape(lambda: law(example.spec).eager(drawn()))
    for values in out if isinstance(out, tuple) else [out]:
        assert values.shape in (batch, ())
    assert jax.tree.leaves(out)[0].dtype == jnp.float32


def in_float64(tree):
    wide = lambda x: x.astype(jnp.float64) if getattr(x, "dtype", None) == jnp.float32 else x
    return jax.tree.map(wide, tree)


@every(LOSSES, least=True)
@given(seed=st.integers(0, 99), size=st.floats(0.01, 10.0))
def test_a_loss_is_least_where_the_student_equals_the_teacher(example, seed, size):
    equal = taught(equally_deep(example, seed=seed))
    away = lambda tree: jax.tree.map(lambda x, n: x + size * n, tree, noise(seed + 1, tree))
    params = equal.params | {"student": away(equal.params["student"])}
    other = replace(equal, student=away(equal.student), params=params)
    least, _, slope = law(example.spec).everything(equal)
    with jax.enable_x64(True):  # in float32 the loss of a row this near may round to 0 and below
        assert (law(example.spec).values(in_float64(other)) > law(example.spec).values(in_float64(equal))).all()
    assert size < 0.1 or (np.asarray(law(example.spec).everything(other)[0]) > least).all()
    assert np.abs(least).max() < 1e-5
    for leaf in jax.tree.leaves((slope["student"], slope["params"]["student"])):
        assert np.abs(leaf).max() < 1e-5


def padded(seen: Signals, valid: int, student: float, teachers: float) -> Signals:
    """Mask the rows from `valid` on, and fill the student's and the teachers' outputs there with these numbers."""

    def fill(tree, filler):
        counts = lambda x: np.arange(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1)) < valid
        return jax.tree.map(lambda x: np.where(counts(x), x, np.asarray(filler, x.dtype)), tree)

    return replace(
        seen,
        student=fill(seen.student, student),
        teachers=fill(seen.teachers, teachers),
        batch=fill(seen.batch, 0),
        mask=fill(seen.mask, 0),
    )


@every(LOSSES)
def test_what_padded_rows_hold_changes_no_bit_of_a_loss(example):
    seen, nan = equally_deep(example), float("nan")
    found = lambda *fillers: law(example.spec).everything(padded(seen, 4, *fillers))[1:]
    mean, gradient = found(0.0, 0.0)
    assert_same(found(1e6, -1e6), (mean, gradient))
    assert_same(found(0.0, nan), (mean, gradient))
    assert_same(found(nan, nan)[0], mean)


@every(LOSSES)
def test_a_label_that_is_no_class_is_not_taken_for_the_last(example):
    """Check the label -1, used for hidden labels: a loss that reads it is NaN, and in masked rows it changes no bit."""
    seen = equally_deep(example)
    labelled = lambda seen, row, label: replace(
        seen, batch=seen.batch | {"label": np.where(np.arange(6) == row, np.int32(label), seen.batch["label"])}
    )
    first, last, none = (law(example.spec).everything(labelled(seen, 0, label))[1].compute() for label in (0, 4, -1))
    assert np.isnan(none) if first != last else none == first
    short = padded(seen, 5, 0.0, 0.0)
    found = lambda seen: law(example.spec).everything(seen)[1:]
    assert_same(found(labelled(short, 5, -1)), found(short))


@pytest.mark.sampled("kd*", "rkd*", "crd*", "cc*", "dist*", "similarity*", "hidden*", "heads*", "nst*", "pkd*", "gold*")
@every(LOSSES)
def test_more_padding_does_not_change_a_loss(example):
    seen = equally_deep(example)
    few = law(example.spec).mean(batches.at_rows(seen, np.arange(4)))
    assert_close(law(example.spec).everything(padded(seen, 4, 7.0, 3.0))[1].compute(), few.compute(), rtol=1e-6)


@every(LOSSES, draws=False)
def test_permuting_the_batch_permutes_the_values_of_a_loss(example):
    order, seen = np.asarray([3, 0, 5, 1, 4, 2]), equally_deep(example)
    values, permuted = (law(example.spec).everything(each)[0] for each in (seen, batches.at_rows(seen, order)))
    assert_close(permuted, values[order] if values.ndim else values)


@every(LOSSES)
@pytest.mark.parametrize("role", ["student", "teachers", "params"])
def test_the_gradient_of_a_loss_is_that_of_its_value_also_where_its_teacher_learns(example, role):
    """Check by finite differences; a `stop_gradient` in a term would silently stop all meta-learning of its teacher."""
    seen = equally_deep(example)
    learned = getattr(seen, role)
    direction = noise(1, learned)
    moved = lambda size: replace(seen, **{role: jax.tree.map(lambda x, d: x + size * d, learned, direction)})
    ahead, behind = (law(example.spec).everything(moved(size))[1].compute() for size in (0.01, -0.01))
    gradient = law(example.spec).everything(seen)[2]
    along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient[role], direction)))
    if role in example.detaches:  # an example that claims to detach must do so
        assert along and np.abs(along - (ahead - behind) / 0.02) > 0.01
    else:
        assert_close(along, (ahead - behind) / 0.02, rtol=5e-3, atol=2e-3)
    if "teacher" in build_loss(example.spec).needs:
        assert any(x.any() for x in jax.tree.leaves((gradient["teachers"], gradient["params"]["teachers"])))


@every(LOSSES)
def test_a_nan_that_counts_is_not_hidden(example):
    """Check that NaN in any model gives the loss NaN, since a run stops only at a loss that is not finite."""
    seen, needs = equally_deep(example), build_loss(example.spec).needs
    spoil = lambda tree: jax.tree.map(lambda x: x * np.float32(np.nan), tree)
    broken = replace(seen, student=spoil(seen.student), params=seen.params | {"student": spoil(seen.params["student"])})
    assert np.isnan(law(example.spec).everything(broken)[1].compute())
    if "teacher" in needs:
        params = seen.params | {"teachers": spoil(seen.params["teachers"])}
        broken = replace(seen, teachers=spoil(seen.teachers), params=params)
        assert np.isnan(law(example.spec).everything(broken)[1].compute())


@pytest.mark.slow  # without jit, every operation is compiled by itself
@every(LOSSES)
def test_a_loss_is_the_same_under_jit(example):
    seen = jax.device_put(equally_deep(example))
    assert_close(law(example.spec).values(seen), law(example.spec).eager(seen))


@pytest.mark.sampled("kd*", "rkd*", "crd*", "dist*", "hidden*", "heads*", "nst*", "gold*", "dkd*", "ttm*")
@every(LOSSES)
def test_a_loss_of_bfloat16_outputs_is_computed_in_float32(example):
    halves = on_outputs(lambda x: x.astype(jnp.bfloat16), equally_deep(example))
    values = law(example.spec).values(halves)
    expected = law(example.spec).everything(on_outputs(lambda x: x.astype(jnp.float32), halves))[0]
    assert values.dtype == jnp.float32
    assert (np.abs(values - expected) <= 2e-2 * np.maximum(1, np.abs(expected))).all()


def on_8_devices(example: examples.Example) -> list[str]:
    """Return the layouts to test; pmap cannot break a local term, which reads each row by itself."""
    return ["mesh"] if build_loss(example.spec).local else ["mesh", "pmap"]


@pytest.mark.sampled(
    *(f"{name}-pmap" for name in ("rkd", "cc", "dist", "pkt", "similarity*", "crd*", "uld", "decay", "contrastive"))
)
@pytest.mark.parametrize(
    ("example", "layout"),
    [
        pytest.param(
            table[0], layout, id=f"{table[0].spec}-{layout}", marks=[pytest.mark.slow] if layout == "mesh" else []
        )  # under jit no gathering can be forgotten, unless a term maps its own shards
        for table in LOSSES.values()
        for layout in on_8_devices(table[0])
    ],
)
def test_a_loss_is_the_same_on_several_devices(example, layout):
    """Check value and gradient on devices with 2, 1 or 0 unmasked rows: a term that compares rows must gather them."""
    rows, valid = (16, 11) if layout == "mesh" else (6, 3)  # 6 rows reuse the program of the other laws
    seen = jax.device_put(padded(equally_deep(example, batch=(rows,)), valid, 0.0, 0.0))
    _, value, gradient = law(example.spec).everything(seen)
    rows = (seen.student, seen.teachers, seen.batch, seen.mask)
    join = lambda rows: replace(seen, student=rows[0], teachers=rows[1], batch=rows[2], mask=rows[3])

    def both(rows):
        def loss(student):
            mean = law(example.spec).plain(replace(join(rows), student=student))
            return mean.sum / jnp.maximum(mean.count, 1)

        local, slope = jax.value_and_grad(loss)(rows[0])
        return psum(local), slope

    if layout == "mesh":
        mesh = make_mesh((2, 2, 2))
        with jax.set_mesh(mesh):
            found = jax.jit(both)(jax.device_put(rows, NamedSharding(mesh, ROWS)))
    else:
        split = lambda tree: jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), tree)
        values, slopes = jax.pmap(both, axis_name=PMAP_AXIS)(split(rows))
        found = values[0], jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), slopes)
    assert_close(found, (value.compute(), gradient["student"]), rtol=1e-4, atol=1e-5)
