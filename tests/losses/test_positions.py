"""Tests of positions in losses between hidden states: images, tokens, padding, refused extents, and training."""

import functools
from dataclasses import replace

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import signals
from checks import assert_close
from jax.sharding import NamedSharding
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.collectives import ROWS
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Array, Outputs, Signals, Variables
from jaxdistill.parallel.mesh import make_mesh

KEY = jax.random.key(0)


def values(spec: str, seen: Signals, params=None) -> Array:
    term = build_loss(spec)
    both = lambda seen: term.apply(term.init(KEY, seen)[0] if params is None else params, {}, seen, key=KEY)[0]
    return jax.jit(both)(seen)


# Positions: images, tokens, padding, and none

POSITIONS = ["attention_transfer", "fsp", "nst", "semckd", "vid"]


@pytest.mark.sampled("attention_transfer", "nst", "vid", "fsp")
@pytest.mark.parametrize("name", POSITIONS)
def test_padding_of_a_text_counts_nothing(name):
    """Check that three more positions of padding, and what padding holds, change no loss."""
    text = signals(batch=(4,), extent=(5,), depths=(2,))
    lengths = jnp.array([3, 2, 5, 4])
    at = lambda n: (jnp.arange(n) < lengths[:, None]).astype(jnp.int32)
    text = replace(text, batch=text.batch | {"attention_mask": at(5)})

    def longer(outputs: Outputs, filler: float) -> Outputs:
        fill = lambda x: jnp.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=filler)
        held = jnp.arange(8)[:, None] < lengths[:, None, None]
        return replace(outputs, hidden_states=tuple(jnp.where(held, fill(x), filler) for x in outputs.hidden_states))

    padded = replace(
        text,
        student=longer(text.student, 7.0),
        teachers=(longer(text.teachers[0], -5.0),),
        batch=text.batch | {"attention_mask": at(8)},
    )
    assert_close(values(name, padded), values(name, text), rtol=1e-5, atol=1e-6)
    if name in ("attention_transfer", "fsp", "nst"):  # these losses compare each row by itself
        for row, length in enumerate(lengths.tolist()):
            cut = lambda out, row=row, n=length: replace(
                out, hidden_states=tuple(x[row : row + 1, :n] for x in out.hidden_states)
            )
            alone = replace(
                text, student=cut(text.student), teachers=(cut(text.teachers[0]),), batch={}, mask=jnp.ones(1)
            )
            assert_close(values(name, alone)[0], values(name, text)[row], rtol=1e-4)


@pytest.mark.sampled("attention_transfer", "nst", "vid", "fsp")
@pytest.mark.parametrize("name", POSITIONS)
def test_tokens_are_positions(name):
    """Check that a text gives the loss of an image with as many positions, if the formula knows no neighbours."""
    image = signals(extent=(2, 3), depths=(2,))
    flat = lambda out: replace(out, hidden_states=tuple(x.reshape(6, 6, 4) for x in out.hidden_states))
    tokens = replace(image, student=flat(image.student), teachers=tuple(map(flat, image.teachers)))
    if name != "semckd":  # its regressors convolve an image by 3x3 windows
        assert_close(values(name, tokens), values(name, image))
    assert values(name, tokens).shape == (6,)


REFUSED = {  # (spec, the student's extent, the teacher's) -> what is said
    ("attention_transfer", (), ()): r"extent \(\), but at least two positions are needed.*'hidden'",
    ("fsp", (), ()): r"extent \(\), but at least two positions",
    ("nst", (), ()): r"extent \(\), but at least two positions",
    ("attention_transfer", (1, 1), (1, 1)): r"extent \(1, 1\), but at least two positions",
    ("nst", (2, 2), (1, 1)): r"extent \(1, 1\), but at least two positions",
    ("attention_transfer", (5,), (6,)): r"student's hidden state has extent \(5,\), the teacher's \(6,\)",
    ("semckd", (6,), (2, 3)): r"only maps such as \(height, width\) are pooled.*'hidden'",
    ("vid", (), (2, 3)): "Choose other layers, or 'hidden'",
    ("review", (), ()): r"extent \(\), but review needs maps \(height, width\).*'hidden'",
    ("review", (6,), (6,)): r"extent \(6,\), but review needs maps",
    ("fsp(layers='last')", (2, 3), (2, 3)): "at least two layer pairs, and layers='last' names one; name another",
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def test_states_that_do_not_fit_are_refused_with_the_cure(case):
    spec, student, teacher = case
    seen = replace(signals(extent=student), teachers=signals(extent=teacher, depths=(2,)).teachers)
    with pytest.raises(ValueError, match=REFUSED[case]):
        values(spec, seen)


def test_flows_of_unlike_widths_are_refused_with_the_cure():
    seen = replace(signals(extent=(2, 3)), teachers=signals(extent=(2, 3), width=5, depths=(2,)).teachers)
    with pytest.raises(ValueError, match=r"student 4, teacher 5.*or 'nst'"):
        values("fsp", seen)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        *((f"{name}(layers='unifrom')", "unknown layer map 'unifrom'") for name in (*POSITIONS, "review")),
        ("vid(variance=0.1, minimum=0.2)", "0 < minimum < variance"),
        ("vid(minimum=0.0)", "0 < minimum < variance"),
        ("review(width=0)", "width must be at least 1"),
        ("semckd(size=0)", "size must be at least 1"),
    ],
)
def test_a_wrong_argument_fails_before_any_model_exists(spec, said):
    with pytest.raises(ConfigError, match=said):
        build_loss(spec)


def test_a_layer_that_is_not_cached_is_named():
    seen = signals(extent=(2, 3), depths=(2,))
    states = seen.teachers[0].hidden_states
    seen = replace(seen, teachers=(replace(seen.teachers[0], hidden_states=(states[0], None, states[2])),))
    for name in (*POSITIONS, "review"):
        with pytest.raises(ValueError, match=r"teacher's outputs lack layers \[1\]; .* lists \[0, 2\]"):
            values(name, seen)


# Training


@functools.cache
def student_and_teacher():
    rows = batches.images(rows=16, size=8)
    student = registry.models.build("resnet(widths=(4, 6), blocks=1, classes=5)", "")
    teacher = registry.models.build("resnet(widths=(4, 6), blocks=2, classes=5)", "")
    return rows, student, teacher, Variables(*jax.jit(teacher.init)(jax.random.key(7), rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*POSITIONS, "review"])
def test_a_term_alone_teaches_a_network(name):
    """Check that training on this term alone lowers it, for a student of 3 hidden states and a teacher of 5."""
    rows, student, teacher, frozen = student_and_teacher()
    term = build_loss(f"{name}(layers=((1, 2), (2, 4)))")
    minimised = objective({name: WeightedTerm(term)}, registry.fusions.build("single", ""))
    update = optimizer(registry.optimizers.build("adamw", ""), 0.01)
    parts = {"student": student, "teachers": (teacher,), "objective": minimised, "optimizer": update}
    step = registry.steps.build(parse("offline", "")._replace(kwargs=parts), "")
    state = jax.jit(step.init)(KEY, (frozen,), {"train": rows})
    advance = jax.jit(step.update, donate_argnums=0)
    losses = []
    for _ in range(30):
        state, metrics = advance(state, (frozen,), {"train": rows})
        losses.append(float(metrics["loss"].compute()))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.85 * losses[0], losses[:: len(losses) - 1]


@pytest.mark.sampled("vid")
@pytest.mark.parametrize("name", ["review", "semckd", "vid"])
def test_what_a_term_learns_has_the_same_gradient_on_a_mesh(name):
    seen = signals(batch=(16,), extent=(4, 4), depths=(2,))
    seen = replace(seen, mask=(jnp.arange(16) < 11).astype(jnp.float32))
    term = build_loss(name)
    params = term.init(KEY, seen)[0]

    def loss(params, rows):
        here = replace(seen, student=rows[0], teachers=rows[1], mask=rows[2])
        return jnp.sum(term.apply(params, {}, here, key=KEY)[0] * here.mask)

    gradient, rows = jax.jit(jax.grad(loss)), (seen.student, seen.teachers, seen.mask)
    expected = gradient(params, rows)
    mesh = make_mesh((2, 2, 2))
    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(loss))(params, jax.device_put(rows, NamedSharding(mesh, ROWS)))
    assert_close(found, expected, rtol=1e-3, atol=1e-4)
