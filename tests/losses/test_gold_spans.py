"""Tests of `uld` and `gold` for a teacher of other tokens: finite gradients, masked tokens, 8 devices, and chunks."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import single
from checks import all_finite, assert_close, assert_same
from examples import slow
from jax.sharding import NamedSharding
from spans import SHARED, SINGLE, mean, of_spans, term_of
from terms import build_loss

from jaxdistill.core.collectives import PMAP_AXIS, ROWS, psum
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Factored, Outputs, Signals
from jaxdistill.parallel.mesh import make_mesh

KEY = jax.random.key(0)


# Laws, where tokens differ


TERMS = pytest.mark.parametrize("name", ["uld", "gold"])


def made(name: str) -> Any:
    return term_of("gold", beta=0.3, vocabulary=SHARED) if name == "gold" else term_of("uld")


@functools.cache
def both(name: str) -> Any:
    """Return a compiled function of the mean loss and its gradients in the logits of student and teacher."""

    def found(seen):
        def loss(student, teacher):
            own = replace(seen.teacher, logits=teacher)
            return mean(made(name), replace(seen, student=Outputs(student), teachers=(own,), teacher=None)).compute()

        return jax.value_and_grad(loss, (0, 1))(seen.student.logits, seen.teacher.logits)

    return jax.jit(found)


@pytest.mark.sampled("*gold")
@TERMS
@pytest.mark.parametrize(
    "change",
    [
        lambda seen: seen,
        lambda seen: on_logits(seen, lambda x: 0 * x),
        lambda seen: on_logits(seen, lambda x: 1e4 * x),
        lambda seen: on_teacher(seen, lambda x: np.where(np.arange(9) % 2 == 1, np.float32(-np.inf), x)),
        lambda seen: on_teacher(seen, lambda x: np.where(np.arange(9) == 4, x, np.float32(-np.inf))),
    ],
    ids=["random", "zeros", "huge", "masked", "one class"],
)
def test_value_and_gradient_are_finite_whatever_the_teacher_says(name, change):
    assert all_finite(both(name)(change(of_spans())))


def on_teacher(seen: Signals, function: Any) -> Signals:
    return replace(seen, teacher=replace(seen.teacher, logits=function(np.asarray(seen.teacher.logits))))


def on_logits(seen: Signals, function: Any) -> Signals:
    return replace(on_teacher(seen, function), student=Outputs(function(np.asarray(seen.student.logits))))


@pytest.mark.sampled("gold")
@TERMS
def test_what_stands_where_nothing_counts_changes_no_bit(name):
    """Check rows that fill up a batch, and tokens of either model that belong to no span."""
    seen, term = jax.device_get(of_spans()), made(name)
    seen = replace(seen, mask=np.float32([[1], [1], [0], [1]]) * seen.mask)
    at = lambda x, rows: x[..., None] & rows[:, None, None]
    rows = np.asarray([True, True, False, True])
    ours, theirs = at(seen.batch["span"] > 0, rows), at(seen.teacher.spans.number > 0, rows)
    found = [
        both(name)(
            replace(
                on_teacher(seen, lambda x, f=filler: np.where(theirs, x, f)),
                student=Outputs(np.where(ours, seen.student.logits, f)),
            ),
        )
        for filler, f in np.float32([(0, 0), (1e6, -1e6), (np.nan, 7)])
    ]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])
    spoilt = replace(seen, student=Outputs(np.where(ours, seen.student.logits, np.float32(np.nan))))
    assert_same(mean(term, spoilt), mean(term, seen))


@pytest.mark.sampled("pmap-uld")
@TERMS
@pytest.mark.parametrize("layout", [slow("mesh"), "pmap"])
def test_rows_may_lie_on_8_devices(name, layout):
    seen, term = of_spans(rows=8), made(name)
    seen = replace(seen, mask=single(np.float32([1, 1, 1, 0, 1, 0, 1, 1])[:, None] * seen.mask))
    whole = mean(term, seen).compute(), both(name)(seen)[1][0]
    rows = (seen.student, seen.teacher, seen.batch, seen.mask)

    def split(rows):
        def loss(student):
            found = mean(
                term, replace(seen, student=student, teachers=(rows[1],), teacher=None, batch=rows[2], mask=rows[3])
            )
            return found.sum / jnp.maximum(found.count, 1)

        value, slope = jax.value_and_grad(loss)(rows[0])
        return psum(value), slope.logits

    if layout == "mesh":
        mesh = make_mesh((2, 2, 2))
        with jax.set_mesh(mesh):
            found = jax.jit(split)(jax.device_put(rows, NamedSharding(mesh, ROWS)))
    else:
        values, slopes = jax.pmap(split, axis_name=PMAP_AXIS)(jax.tree.map(lambda x: np.asarray(x)[:, None], rows))
        found = np.asarray(values)[0], np.asarray(slopes)[:, 0]
    assert_close(found, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.sampled("gold")
@TERMS
def test_the_gradient_is_that_of_the_value(name):
    seen = jax.device_get(replace(of_spans(rows=2), temperature=np.float32(1), params={}))
    with jax.enable_x64(True):
        seen = jax.tree.map(lambda x: jnp.asarray(x.astype(np.float64) if x.dtype == np.float32 else x), seen)

        def loss(student, teacher):
            given = replace(seen, student=Outputs(student), teachers=(replace(seen.teacher, logits=teacher),))
            values, counts = made(name).apply({}, {}, given, key=KEY)[0]
            return jnp.sum(jnp.where(counts, values, 0))

        loss, at = jax.jit(loss), jax.device_get([seen.student.logits, seen.teacher.logits])
        slopes = jax.device_get(jax.jit(jax.grad(loss, (0, 1)))(*at))
        rng = np.random.default_rng(1)
        for which in (0, 1):
            away = rng.normal(size=slopes[which].shape)
            to = lambda size, w=which, d=away: [x + size * d if n == w else x for n, x in enumerate(at)]
            moved = lambda size, to=to: float(loss(*to(size)))
            assert_close((moved(1e-5) - moved(-1e-5)) / 2e-5, np.vdot(slopes[which], away), rtol=1e-6)


def test_a_factored_head_beside_a_teacher_of_other_tokens():
    """Check that 4 chunks give the loss and gradient of 1 chunk, though only cross-entropy is computed in chunks."""
    seen = of_spans(rows=2)
    pad = lambda x: jnp.asarray(np.pad(x, ((0, 0), (0, 1))))
    rng = np.random.default_rng(5)
    draw = lambda *shape: single(rng.normal(size=shape))
    batch = {name: pad(x) for name, x in seen.batch.items()}
    spans = jax.tree.map(pad, seen.teacher.spans)  # 9 tokens do not divide into 4 chunks
    teacher = Outputs(Factored(draw(2, 9, 3), draw(3, 9)), spans=spans)
    seen = replace(seen, teachers=(teacher,), teacher=None, batch=batch, mask=jnp.ones((2, 8)))
    terms = {"gold": WeightedTerm(made("gold")), "ce": WeightedTerm(build_loss("cross_entropy"), 0.5)}

    def run(chunks, head):
        minimised = objective(terms, SINGLE, chunks)
        given = {"train": replace(seen, student=Outputs(head))}
        params, state = minimised.init(KEY, given)
        return minimised.loss(params, state, given, minimised.weights(0), key=KEY)[0]

    head = Factored(draw(2, 8, 4), draw(4, 6))
    found = [jax.jit(jax.value_and_grad(run, 1), static_argnums=0)(chunks, head) for chunks in (1, 4)]
    assert_close(found[1], found[0], rtol=2e-5, atol=1e-5)
