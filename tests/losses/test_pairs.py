"""Tests of losses of image-text pairs: open_clip's values, formulas by loops, scales, and rows without a pair."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import BATCHES, drawn, signals
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Outputs, Signals, Variables

FILE = np.load(Path(__file__).parents[1] / "golden" / "pairs.npz")
KEY = jax.random.key(0)
SPECS = ("contrastive", "sigmoid", "affinity", "interactive", "embedding(projector='none')")


def towers(image, text, scale, bias=None) -> Outputs:
    rows = np.shape(image)[0]
    full = lambda x: None if x is None else jnp.broadcast_to(jnp.asarray(x), (rows,))
    return Outputs(jnp.zeros((rows, rows)), embedding=image, text_embedding=text, scale=full(scale), bias=full(bias))


def seen(student: Outputs, teachers: tuple[Outputs, ...], mask=None) -> Signals:
    rows = student.embedding.shape[0]
    return replace(
        signals(), student=student, teachers=teachers, batch={}, mask=jnp.ones(rows) if mask is None else mask
    )


def mean(spec: str, given: Signals):
    """Return the mean of a term, computed by an objective with newly drawn parameters."""
    minimised = objective({"term": WeightedTerm(build_loss(spec))}, registry.fusions.build("single", ""))
    params, state = minimised.init(KEY, {"train": given})
    return minimised.total(minimised.apply(params, state, {"train": given}, key=KEY)[0], 0)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", ["contrastive", "affinity", "sigmoid"])
def test_values_and_gradients_are_those_of_open_clip(name, precision):
    with jax.enable_x64(precision == "float64"):
        given = lambda key: jnp.asarray(FILE[key], precision)
        teacher = towers(given("teacher_image"), given("teacher_text"), given("teacher_scale"))

        def loss(inputs):
            student = towers(inputs["image"], inputs["text"], inputs["scale"], inputs.get("bias", given("bias")))
            return mean(name, seen(student, (teacher,)))

        names = ["image", "text", "scale", *(["bias"] if name == "sigmoid" else [])]
        value, slopes = jax.jit(jax.value_and_grad(loss))({key: given(key) for key in names})
        tolerance = 1e-12 if precision == "float64" else 2e-6
        np.testing.assert_allclose(value, FILE[f"{name}/value"], rtol=tolerance)
        for key, slope in slopes.items():
            np.testing.assert_allclose(slope, FILE[f"{name}/grad/{key}"], atol=tolerance, rtol=tolerance)


def drawn_towers(seed, rows=5, width=4, scale=3.0):
    draw = np.random.default_rng(seed)
    return towers(*jnp.asarray(draw.normal(size=(2, rows, width)), jnp.float32), scale)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_affinity_is_kd_plus_entropy_in_both_directions():
    student, teacher = drawn_towers(0), drawn_towers(1, width=7, scale=8.0)
    compared = lambda x: 1.0 * np.asarray(x.scale)[0] * unit(x.embedding) @ unit(x.text_embedding).T
    total, kd = 0.0, build_loss("kd(temperature=1.0)")
    for s, t in ((compared(student), compared(teacher)), (compared(student).T, compared(teacher).T)):
        as_classes = replace(signals(), student=Outputs(jnp.asarray(s)), teacher=Outputs(jnp.asarray(t)))
        total += float(jnp.mean(kd.apply({}, {}, as_classes, key=KEY)[0])) - np.mean(
            (softmax(t) * np.log(softmax(t))).sum(-1)
        )
    assert float(mean("affinity", seen(student, (teacher,)))) == pytest.approx(total / 2, abs=1e-6)


def test_the_scale_is_each_models_own():
    student, teacher = drawn_towers(0), drawn_towers(1, scale=20.0)
    own = float(mean("affinity", seen(student, (teacher,))))
    assert own == pytest.approx(float(mean("affinity(scale=20.0)", seen(student, (teacher,)))))
    dropped = float(mean("affinity(scale=1.0)", seen(student, (teacher,))))
    assert abs(own - dropped) > 0.1  # without its scale the teacher's softmax is almost uniform
    other = replace(student, scale=student.scale * 2)
    assert abs(own - float(mean("affinity", seen(other, (teacher,))))) > 0.01


def test_of_several_teachers_the_softmaxes_are_averaged():
    student, one, two = drawn_towers(0), drawn_towers(1, width=6, scale=5.0), drawn_towers(2, width=3, scale=30.0)
    both = float(mean("affinity(of=(0, 1))", seen(student, (one, two))))
    each = [float(mean(f"affinity(of=({n},))", seen(student, (one, two)))) for n in (0, 1)]
    assert both == pytest.approx(np.mean(each), rel=1e-6) and abs(each[0] - each[1]) > 0.01


def test_interactive_and_embedding_by_loops():
    student, teacher = drawn_towers(0), drawn_towers(1, scale=6.0)
    (i, t), (wide_i, wide_t) = (map(unit, (x.embedding, x.text_embedding)) for x in (student, teacher))
    rows, crossed, apart = len(i), 0.0, 0.0
    for row in range(rows):
        for own, others in ((i, wide_t), (t, wide_i)):
            z = np.array([6.0 * own[row] @ others[k] for k in range(rows)])
            crossed += (np.log(np.exp(z).sum()) - z[row]) / 2 / rows
        apart += (((i[row] - wide_i[row]) ** 2).sum() + ((t[row] - wide_t[row]) ** 2).sum()) / rows
    assert float(mean("interactive", seen(student, (teacher,)))) == pytest.approx(crossed, rel=1e-5)
    assert float(mean("embedding(projector='none')", seen(student, (teacher,)))) == pytest.approx(apart, rel=1e-5)
    sides = [float(mean(f"embedding('{side}', 'none')", seen(student, (teacher,)))) for side in ("images", "texts")]
    assert sum(sides) == pytest.approx(apart, rel=1e-5)


def test_with_student_and_teacher_equal_interactive_is_contrastive():
    teacher = drawn_towers(3, scale=7.0)
    found, wanted = (float(mean(spec, seen(teacher, (teacher,)))) for spec in ("interactive", "contrastive"))
    assert found == pytest.approx(wanted, rel=1e-6)


def test_rows_without_a_pair_are_no_candidates():
    student, teacher = replace(drawn_towers(0, rows=6), bias=jnp.ones(6)), drawn_towers(1, rows=6, scale=9.0)
    first = lambda x: jax.tree.map(lambda leaf: leaf[:4], replace(x, logits=jnp.zeros((6, 4))))
    mask = jnp.asarray([1.0, 1, 1, 1, 0, 0])
    for spec in SPECS:
        whole = float(mean(spec, seen(student, (teacher,), mask)))
        assert whole == pytest.approx(float(mean(spec, seen(first(student), (first(teacher),)))), rel=1e-5), spec


def test_a_batch_that_is_longer_is_harder():
    student = drawn_towers(4, rows=8)
    first = jax.tree.map(lambda leaf: leaf[:4], student)
    assert float(mean("contrastive", seen(student, ()))) > float(mean("contrastive", seen(first, ())))


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "said"),
    [
        ("contrastive", {"text_embedding": None}, {}, "the student does not have two towers"),
        ("contrastive", {"scale": None}, {}, "the student has no scale of its own; set scale="),
        ("affinity", {}, {"scale": None}, "the teacher has no scale of its own; set scale="),
        ("affinity(of=(0, 3))", {}, {}, "there is no teacher 3"),
        ("interactive", {}, {"embedding": jnp.ones((5, 9)), "text_embedding": jnp.ones((5, 9))}, "widths of the emb"),
        ("embedding(projector='none')", {}, {"embedding": jnp.ones((5, 9))}, "widths differ"),
        ("embedding('texts')", {}, {"text_embedding": None}, "the teacher has no embedding of texts"),
        ("sigmoid", {"bias": None}, {}, "the student has no bias"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(spec, student, teacher, said):
    given = seen(replace(drawn_towers(0), **student), (replace(drawn_towers(1), **teacher),))
    with pytest.raises(ValueError, match=said):
        mean(spec, given)


@pytest.mark.parametrize("spec", ["affinity(scale=-1.0)", "affinity(of=())", "interactive(scale=-1.0)"])
def test_wrong_arguments_are_refused(spec):
    with pytest.raises(ValueError, match="at least 0"):
        build_loss(spec)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_networks_with_two_towers_give_scale_and_bias(name):
    from examples import MODELS

    network, rows = registry.models.build(MODELS[name][0].spec, ""), BATCHES["pairs"]()
    values = drawn(Variables(*jax.eval_shape(network.init, KEY, rows)), 0)
    out, _ = network.apply(*jax.tree.map(jnp.asarray, values), rows, train=False, key=KEY)
    assert out.scale.shape == rows["mask"].shape and (out.bias is None) == (name == "clip")
    bias = 0 if out.bias is None else out.bias[:, None]
    counted = rows["mask"] > 0
    compared = out.scale[:, None] * (out.embedding @ out.text_embedding.T) + bias
    np.testing.assert_allclose(compared[:, counted], out.logits[:, counted], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_a_row_of_tokens_counts_as_one_pair(spec):
    student, teacher = (replace(drawn_towers(n, rows=6, scale=4.0 + n), bias=jnp.ones(6)) for n in (0, 1))
    by_token = jnp.asarray([[1.0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    by_row = jnp.max(by_token, axis=1)
    out = [build_loss(spec).apply({}, {}, seen(student, (teacher,), mask), key=KEY)[0] for mask in (by_token, by_row)]
    assert out[0].shape == by_token.shape
    counted = np.asarray(by_row) > 0
    np.testing.assert_allclose(out[0][counted], np.broadcast_to(out[1][:, None], out[0].shape)[counted], rtol=1e-6)


def test_pairs_are_compared_over_the_whole_batch_and_never_in_chunks():
    is_local = {spec: build_loss(spec).local for spec in SPECS}
    assert not any(is_local.values())


def test_a_row_without_a_pair_changes_no_gradient_whatever_the_student_holds_there():
    student, teacher = drawn_towers(0, rows=6), drawn_towers(1, rows=6)
    mask, broken = jnp.asarray([1.0, 1, 1, 1, 0, 0]), student.embedding.at[5].set(jnp.nan)
    for spec in ("contrastive", "affinity", "interactive", "embedding(projector='none')"):

        def loss(image, spec=spec):
            return mean(spec, seen(replace(student, embedding=image), (teacher,), mask))

        slopes, whole = jax.grad(loss)(broken), jax.grad(loss)(student.embedding)
        np.testing.assert_array_equal(slopes[:4], whole[:4], err_msg=spec)


def test_interactive_needs_no_scale_of_the_student():
    student, teacher = drawn_towers(0), drawn_towers(1, scale=6.0)
    without = seen(replace(student, scale=None), (teacher,))
    assert float(mean("interactive", without)) == float(mean("interactive", seen(student, (teacher,))))
