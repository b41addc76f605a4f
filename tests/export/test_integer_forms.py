"""Tests of `for_integers`: nearly the outputs of the network, without operations that integer files lack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import drawn

from jaxdistill.core import registry
from jaxdistill.core.jaxpr import inner_programs
from jaxdistill.core.types import Variables
from jaxdistill.export.devices.ethos_u65 import ethos_u65
from jaxdistill.export.formats.litert import litert
from jaxdistill.export.integer_forms import for_integers
from jaxdistill.export.network import Network, network_of

TEXT = {"input_ids": ((6,), "int32"), "attention_mask": ((6,), "int32"), "mask": ((), "float32")}
IMAGE = {"image": ((8, 8, 1), "uint8"), "mask": ((), "float32")}
MODELS = {
    "bert(vocabulary=9, width=16, depth=2, heads=2, ffn=24, classes=3)": TEXT,
    "vit(patch=4, width=16, depth=1, heads=2, classes=3, image=8, channels=1)": IMAGE,
    "resnet(widths=(4, 8), blocks=1, classes=3)": IMAGE,
}
LACKED = {"erf", "erfc", "select_n", "neg", "reduce_max", "lt"}


def network(spec: str) -> Network:
    model, fields = registry.models.build(spec, "model"), MODELS[spec]
    batch = {name: jax.ShapeDtypeStruct((2, *shape), dtype) for name, (shape, dtype) in fields.items()}
    return network_of(model, drawn(Variables(*jax.eval_shape(model.init, jax.random.key(0), batch)), 0), fields)


def rows_of(subject: Network, count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    rows = {"image": draw.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)}
    rows["input_ids"] = draw.integers(1, 9, (count, 6)).astype(np.int32)
    rows["attention_mask"] = (np.arange(6) < draw.integers(2, 7, (count, 1))).astype(np.int32)
    return {name: rows[name] for name in subject.inputs}


def primitives(program) -> set[str]:
    inner = [each for equation in program.eqns for each in inner_programs(equation)]
    return {equation.primitive.name for equation in program.eqns}.union(*map(primitives, inner))


def used(function, rows) -> set[str]:
    program = jax.make_jaxpr(function)(rows).jaxpr
    return primitives(jax.interpreters.partial_eval.dce_jaxpr(program, [True])[0])


@pytest.mark.parametrize("spec", MODELS)
def test_outputs_are_nearly_those_of_the_network(spec):
    subject = network(spec)
    rows = rows_of(subject, 8)
    expected, found = jax.jit(subject.function)(rows), jax.jit(for_integers(subject))(rows)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    missing = used(for_integers(subject), rows) & LACKED
    assert not missing and (used(subject.function, rows) & LACKED or "resnet" in spec)


def test_pixels_may_be_floats():
    subject = network("resnet(widths=(4, 8), blocks=1, classes=3)")
    rows = rows_of(subject, 4)
    found = jax.jit(for_integers(subject))({"image": rows["image"].astype(np.float32)})
    np.testing.assert_allclose(found, subject.function(rows), rtol=1e-5, atol=1e-5)


def function(apply, *shape: int) -> Network:
    return Network(lambda v, rows: {"y": apply(rows["x"])}, Variables({}, {}), {"x": (shape, "float32")}, "y")


@pytest.mark.parametrize("score", [-9.0, 42.0, 1000.0])
def test_a_masked_score_gets_no_weight_and_the_others_keep_theirs(score):
    x, real = np.float32([[1.0, 2.0, 3.0, score]]), np.float32([[1, 1, 1, 0]])
    expected = jax.nn.softmax(jnp.float32([[1, 2, 3, -jnp.inf]]))

    def selected(v, rows):
        return {"y": jax.nn.softmax(jnp.where(rows["real"] > 0, rows["x"], -jnp.inf))}

    bias = np.float32([[0, 0, 0, -np.inf]])
    fields = {"x": ((4,), "float32"), "real": ((4,), "float32")}
    for apply in (selected, lambda v, rows: {"y": jax.nn.softmax(rows["x"] + bias + 0 * rows["real"])}):
        subject = Network(apply, Variables({}, {}), fields, "y")
        np.testing.assert_allclose(jax.jit(for_integers(subject))({"x": x, "real": real}), expected, atol=1e-6)


def test_other_infinite_constants_stay_as_they_are():
    clipped = function(lambda x: jnp.maximum(jnp.minimum(x, jnp.inf), -jnp.inf), 3)
    x = np.float32([[-50.0, 24.0, 99.0]])
    np.testing.assert_array_equal(jax.jit(for_integers(clipped))({"x": x}), x)
    constant = function(lambda x: jnp.where(x > 0, x, -24.0), 3)
    np.testing.assert_array_equal(jax.jit(for_integers(constant))({"x": x}), np.float32([[-24, 24, 99]]))


def test_a_softmax_is_left_its_own_maximum_and_no_other_use_of_it_changes():
    shifted = lambda x, axis: x - x.max(axis, keepdims=True)
    x = np.float32([[1.0, 2.0, 4.0], [9.0, 2.0, 3.0]])

    def of_another_axis(x):
        exponentials = jnp.exp(shifted(x, 1))
        return exponentials / exponentials.sum(0, keepdims=True)

    for kept in (lambda x: jnp.exp(shifted(x, -1)) + shifted(x, -1), of_another_axis):
        found = jax.jit(for_integers(function(kept, 3)))({"x": x})
        np.testing.assert_allclose(found, kept(x), rtol=1e-6)
        assert "reduce_max" in used(for_integers(function(kept, 3)), {"x": x})
    softmax = function(lambda x: jax.nn.softmax(x.T, axis=0).T, 3)
    np.testing.assert_allclose(jax.jit(for_integers(softmax))({"x": x}), jax.nn.softmax(x), rtol=1e-6)
    assert "reduce_max" not in used(for_integers(softmax), {"x": x})


def test_tanh_stands_for_erf():
    z = np.linspace(-4, 4, 101, dtype=np.float32)[None]
    for exact in (jax.lax.erf, jax.lax.erfc):
        found = jax.jit(for_integers(function(exact, 101)))({"x": z})
        np.testing.assert_allclose(found, exact(z), atol=4e-4)
        assert np.abs(found - exact(z)).max() > 1e-5  # they differ, so erf was replaced


def test_an_operation_is_named_by_the_layer_whose_weights_it_follows():
    subject = network("bert(vocabulary=9, width=16, depth=2, heads=2, ffn=24, classes=3)")
    text = jax.jit(for_integers(subject)).trace(rows_of(subject, 1)).lower().as_text(debug_info=True)
    for layer in ("embed/token", "blocks/0/attention/query", "blocks/1/up", "head"):
        assert f"/{layer}/" in text, layer


def test_an_npu_runs_every_operation_of_a_resnet_and_most_of_a_bert(tmp_path):
    for package in ("ethosu", "litert_converter", "litert_quantizer", "ai_edge_litert"):
        pytest.importorskip(package)  # `litert` needs older packages than `lint` and is tried in its own environment
    exporter, device = litert(int8="static"), ethos_u65()
    shares = {}
    for spec in MODELS:
        subject = network(spec)
        exporter.write(subject, tmp_path / exporter.file, lambda subject=subject: [rows_of(subject, 8)])
        found = device.inspect(tmp_path / exporter.file)
        shares[spec.partition("(")[0]] = 1 - len(found.refused) / found.operations
        assert all(each.sentence() for each in found.refused)
    assert shares["resnet"] == 1 and 0.9 < shares["bert"] < 1 and shares["vit"] > 0.9


@pytest.mark.parametrize(
    "kept",
    [
        lambda x: jnp.exp(x - jnp.maximum(x.max(-1, keepdims=True), x[:, :1] + 1.0)),
        lambda x: jnp.exp(x - x.max(-1, keepdims=True)) / jnp.exp(2 * x - (2 * x).max(-1, keepdims=True)),
        lambda x: (
            jnp.exp(x - x.max(-1, keepdims=True))
            / jnp.exp(2 * x - (2 * x).max(-1, keepdims=True)).sum(-1, keepdims=True)
        ),
    ],
    ids=["of another maximum", "without sums", "of another array"],
)
def test_what_is_no_softmax_stays_as_it_is(kept):
    x = np.float32([[1.0, 2.0, 4.0]])
    np.testing.assert_allclose(jax.jit(for_integers(function(kept, 3)))({"x": x}), kept(x), rtol=1e-5)


def test_a_row_number_beyond_a_table_reads_its_last_row():
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    looked = Network(
        lambda v, rows: {"y": jnp.asarray(table)[rows["i"]]}, Variables({}, {}), {"i": ((2,), "int32")}, "y"
    )
    found = jax.jit(for_integers(looked))({"i": np.int32([[0, 9]])})
    np.testing.assert_array_equal(found, [[[0, 1], [4, 5]]])


def test_other_comparisons_with_zero_stay_as_they_are():
    compared = function(lambda x: jnp.where(jnp.argmin(x, -1) - 1 < 0, 1.0, 0.0), 3)
    assert jax.jit(for_integers(compared))({"x": np.float32([[1, 2, 3]])}).tolist() == [1.0]


def test_a_mask_leaves_low_scores_their_weights():
    x = np.float32([[-15.0, -15.0, 0.0]])
    masked = function(lambda x: jax.nn.softmax(jnp.where(x < -1, x, -jnp.inf)), 3)
    np.testing.assert_allclose(jax.jit(for_integers(masked))({"x": x}), [[0.5, 0.5, 0]], atol=1e-3)


def test_the_finite_part_of_a_bias_is_added():
    bias = np.float32([[0.5, 0.0, -np.inf]])
    biased = function(lambda x: jax.nn.softmax(x + bias), 3)
    x = np.float32([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(jax.jit(for_integers(biased))({"x": x}), jax.nn.softmax(x + bias), atol=1e-6)
