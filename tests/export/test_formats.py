"""Tests of exported files: every format's own runtime gives the outputs of the model, for any number of rows."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import drawn
from examples import MODELS

import jaxdistill.export.formats
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Outputs, Variables
from jaxdistill.export.formats.onnx_graph import Graph, onnx_model
from jaxdistill.export.measure import package_of
from jaxdistill.export.network import Network, any_number, network_of

LENGTH = 6
TEXT = {"input_ids": ((LENGTH,), "int32"), "attention_mask": ((LENGTH,), "int32"), "mask": ((), "float32")}
FIELDS = {
    "image": {"image": ((8, 8, 1), "float32"), "mask": ((), "float32")},
    "text": TEXT,
    "tokens": TEXT | {"mask": ((LENGTH,), "float32")},
    "clicks": {"categories": ((3,), "int32"), "mask": ((), "float32")},
}
EXAMPLES = {example.spec: example for each in MODELS.values() for example in each if example.inputs != "pairs"}
FORMATS = (
    "onnx",
    "stablehlo",
    "litert",
    "litert(int8='dynamic')",
    "litert(int8='static')",
    "onnx(int8='dynamic')",
    "onnx(int8='static')",
)


def rows_of(network: Network, count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(count)
    made = {}
    for name, (shape, dtype) in network.inputs.items():
        if name in ("input_ids", "categories"):
            made[name] = draw.integers(1, 5, (count, *shape)).astype(dtype)
        elif name == "attention_mask":
            made[name] = (np.arange(*shape) < draw.integers(2, LENGTH + 1, (count, 1))).astype(dtype)
        else:
            made[name] = draw.normal(size=(count, *shape)).astype(dtype)
    return made


def network(spec: str, inputs: str) -> Network:
    model, fields = registry.models.build(spec, "model"), FIELDS[inputs]
    batch = {name: jax.ShapeDtypeStruct((2, *shape), dtype) for name, (shape, dtype) in fields.items()}
    values = drawn(Variables(*jax.eval_shape(model.init, jax.random.key(0), batch)), 0)
    return network_of(model, values, fields)


@pytest.mark.sampled(
    "*-onnx-onnxruntime",
    "mlp*-stablehlo-jax",
    "resnet(*-onnxruntime",
    "bert*onnx*dynamic*-onnxruntime",
    "mlp*litert*-litert",
)
@pytest.mark.parametrize("runtime", ["onnxruntime", "jax", "litert"])
@pytest.mark.parametrize("spec", FORMATS)
@pytest.mark.parametrize("model", EXAMPLES)
def test_a_file_gives_the_outputs_of_its_model(model, spec, runtime, tmp_path):
    exporter = registry.exporters.build(spec, "--to")
    if runtime not in exporter.runtimes:
        return
    for package in (*exporter.packages, package_of(runtime)):
        pytest.importorskip(package)  # `litert` needs older packages than `lint` and is tried in its own environment
    subject = network(model, EXAMPLES[model].inputs)
    file = tmp_path / exporter.file
    if runtime == "litert" and model.startswith("decoder") and "scan_layers=False" not in model:
        # The converter takes no loops, such as the one over the layers.
        with pytest.raises(ConfigError, match="the converter of LiteRT ended with exit code 1"):
            exporter.write(subject, file, lambda: [rows_of(subject, 2)])
        return
    exporter.write(subject, file, lambda: [rows_of(subject, 8), rows_of(subject, 5)])
    run = importlib.import_module(f"jaxdistill.export.runtimes.{runtime}").open_file(file, 1)
    for count in (5, 1, 3) if exporter.any_batch else (1, 1):
        rows = rows_of(subject, count)
        expected = np.asarray(jax.jit(subject.function)(rows))
        found = run(rows)
        assert found.shape == expected.shape and found.dtype == np.float32
        far = np.abs(found - expected).max() / np.abs(expected).max()
        assert (1e-6 < far < 0.4) if exporter.rounds else far < 1e-5


def test_every_format_and_kind_of_model_is_tried():
    assert {parse(spec, "").name for spec in FORMATS} == set(registry.exporters) - {"gguf"}  # see `test_gguf.py`
    assert jaxdistill.export.formats.__doc__
    assert {example.inputs for example in EXAMPLES.values()} == set(FIELDS)


def test_integers_are_smaller(tmp_path):
    subject = network("mlp(widths=(256, 256), classes=5)", "image")
    sizes = {}
    for spec in ("onnx", "onnx(int8='dynamic')"):
        exporter = registry.exporters.build(spec, "--to")
        exporter.write(subject, tmp_path / exporter.file, lambda: [rows_of(subject, 4)])
        sizes[spec] = (tmp_path / exporter.file).stat().st_size
    assert sizes["onnx"] > 3 * sizes["onnx(int8='dynamic')"]


def test_static_ranges_are_those_of_the_samples(tmp_path):
    """Check that outputs are precise with the ranges of the samples, but not with those of 1,000 times larger ones."""
    subject = network("mlp(widths=(64, 64), classes=5)", "image")
    exporter, rows = registry.exporters.build("onnx(int8='static')", "--to"), rows_of(subject, 32)
    expected, far = np.asarray(jax.jit(subject.function)(rows)), {}
    for factor in (1, 1000):
        samples = [{"image": factor * rows["image"]}]
        exporter.write(subject, tmp_path / exporter.file, lambda samples=samples: samples)
        run = importlib.import_module("jaxdistill.export.runtimes.onnxruntime").open_file(tmp_path / exporter.file, 1)
        far[factor] = np.abs(run(rows) - expected).max() / np.abs(expected).max()
    assert far[1] < 0.1 < 0.5 < far[1000]


def looped(carry, values, reverse=False):
    return jax.lax.scan(lambda c, y: (0.5 * c + y, c * y), carry, values, reverse=reverse)


def pooled(x, start, operation):
    return jax.lax.reduce_window(x[..., None], start, operation, (1, 2, 3, 1), (1, 1, 2, 1), "SAME")


def test_each_output_of_a_kernel_has_a_scale_of_its_own(tmp_path):
    """Check a kernel with one large column, which would leave the others no precision if all had one scale."""
    kernel = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32) * np.float32([1, 1, 1, 3000])
    subject = traced(lambda x: x.reshape(-1, 20) @ kernel)
    exporter, x = registry.exporters.build("onnx(int8='dynamic')", "--to"), np.ones((1, 4, 5), np.float32)
    exporter.write(subject, tmp_path / exporter.file, lambda: [{"x": x}])
    found = importlib.import_module("jaxdistill.export.runtimes.onnxruntime").open_file(tmp_path / exporter.file, 1)
    expected = x.reshape(1, 20) @ kernel
    np.testing.assert_allclose(found({"x": x})[:, :3], expected[:, :3], atol=0.1)
    assert np.abs(expected[:, :3]).min() > 0.3


def test_constants_of_equal_bytes_and_other_types_are_two():
    graph = Graph(any_number(), "x")
    names = [graph.constant(np.zeros((), dtype)) for dtype in (np.int32, np.float32, np.int32)]
    assert names[0] == names[2] != names[1]


OPERATIONS = {
    "arithmetic": lambda x: (x * 2 - 1) / (jnp.abs(x) + 3) + jnp.square(x) - jnp.maximum(x, 0.1) * jnp.minimum(x, 0.2),
    "roots": lambda x: jnp.sqrt(jnp.abs(x) + 1) * jax.lax.rsqrt(jnp.abs(x) + 2) + x**3 + (jnp.abs(x) + 1) ** 0.3,
    "logarithms": lambda x: jnp.log1p(jnp.abs(x)) + jnp.expm1(x) + jnp.log(jnp.abs(x) + 1) + jnp.exp(-x),
    "circles": lambda x: jnp.sin(x) + jnp.cos(x) * jnp.tanh(x) + jax.nn.sigmoid(x),
    "activations": lambda x: jax.nn.gelu(x) + jax.nn.gelu(x, approximate=False) + jax.nn.silu(x) + jax.nn.relu6(x),
    "choices": lambda x: jnp.where((x > 0) & (x < 1) | (x == 0) | ~(x >= -1), x, jnp.clip(x, -0.5, 0.5)) + (x != 1),
    "sums": lambda x: jnp.stack([x.sum((1, 2)), x.max((1, 2)), x.min((1, 2)), x.mean((1, 2)), x.prod((1, 2))], -1),
    "truths": lambda x: jnp.stack([(x > 0).any((1, 2)), (x > 9).all((1, 2))], -1) * 1.0,
    "orders": lambda x: jnp.concatenate([x.argmax(-1), x.argmin(1)], 1) * 0.5,
    "cumulative": lambda x: jnp.cumsum(x, 1) + jax.lax.cumsum(x, 2, reverse=True),
    "running": lambda x: jax.lax.cummax(x, 1) + jax.lax.cummin(x, 2, reverse=True),
    "shapes": lambda x: jnp.concatenate([x.reshape(x.shape[0], -1), x.transpose(0, 2, 1).reshape(x.shape[0], 20)], 1),
    "slices": lambda x: x[:, ::2, 1:4:2] + x[:, 2:, :2],
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=0.5),
    "splits": lambda x: sum(part * n for n, part in enumerate(jnp.split(x, 5, -1), 1)),
    "broadcasts": lambda x: (x[:, :, None] + x[:, None, :, :]).sum(-1) + jnp.ones((x.shape[0], 4, 4)) * jnp.arange(4.0),
    "rows": lambda x: x[:, jnp.array([3, 0, 2])] + jnp.take(x[:, 1:], jnp.array([1, 9]), axis=2, mode="clip")[..., 1:],
    "looked up": lambda x: jnp.take(jnp.arange(12.0).reshape(4, 3), 3 * x[:, :, 0].astype(int), axis=0, mode="clip"),
    "many rows": lambda x: jnp.broadcast_to(x.reshape(-1, 5)[:, None], (4 * x.shape[0], 3, 5)).sum(1).reshape(-1, 20),
    "pairs": lambda x: x[:, jnp.array([0, 3, 1]), jnp.array([4, 0, 2])],
    "products": lambda x: jnp.einsum("bij,bkj->bik", x, x) + jnp.einsum("bij,jk->bik", x, jnp.ones((5, 4))),
    "contractions": lambda x: jnp.einsum("bij,ijk->bk", x, jnp.arange(40.0).reshape(4, 5, 2))
    + jnp.einsum("bij,kj->bk", x, jnp.arange(10.0).reshape(2, 5)),
    "loops": lambda x: looped(x[:, 0], jnp.arange(3.0))[0],
    "loops from the end": lambda x: jnp.einsum("lbi,l->bi", looped(x[:, 0], jnp.arange(2.0), True)[1], jnp.arange(2.0)),
    "sequences": lambda x: looped(x[:, 0], x.transpose(1, 0, 2))[1].transpose(1, 0, 2),
    "convolutions": lambda x: jax.lax.conv_general_dilated(
        x[..., None], jnp.arange(18.0).reshape(3, 3, 1, 2) - 8, (2, 1), ((1, 0), (1, 1)),
        rhs_dilation=(1, 2), dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "pooling": lambda x: pooled(x, -jnp.inf, jax.lax.max) + pooled(x, 0.0, jax.lax.add),
    "numbers": lambda x: (x.astype(int) & 3) + (x.astype(int) | 4) + jnp.sign(x) + jnp.floor(x) + jnp.ceil(x),
}  # fmt: skip


@pytest.mark.parametrize("function", [jnp.log1p, jnp.expm1])
def test_small_numbers_keep_their_digits(function, tmp_path):
    import onnx

    x = np.float32([1e-8, -1e-8, 1e-4, -0.3, 0.49, 0.51, 0.0, 3.0, -0.9, 7.0] * 2).reshape(1, 4, 5)
    onnx.save(onnx_model(traced(function)), tmp_path / "x.onnx")
    found = importlib.import_module("jaxdistill.export.runtimes.onnxruntime").open_file(tmp_path / "x.onnx", 1)(
        {"x": x}
    )
    np.testing.assert_allclose(found, function(jnp.asarray(x)), rtol=1e-5)


def traced(function) -> Network:
    return Network(
        lambda variables, rows: {"logits": function(rows["x"])}, Variables({}, {}), {"x": ((4, 5), "float32")}, "logits"
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_of_onnx_is_that_of_jax(name, tmp_path):
    import onnx

    subject = traced(OPERATIONS[name])
    model = onnx_model(subject)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "x.onnx")
    run = importlib.import_module("jaxdistill.export.runtimes.onnxruntime").open_file(tmp_path / "x.onnx", 1)
    for count in (1, 3):
        x = np.random.default_rng(count).normal(0, 1.5, (count, 4, 5)).astype(np.float32)
        expected = np.asarray(subject.function({"x": jnp.asarray(x)}))
        found = run({"x": x})
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: jnp.fft.fft(x).real, "computes 'fft'"),
        (lambda x: jnp.sort(x), "computes 'sort'"),
        (lambda x: jax.lax.dynamic_slice(x, (0, x[0, 0, 0].astype(int), 0), (1, 2, 2)), "computes 'dynamic_slice'"),
    ],
)
def test_an_operation_without_a_translation_is_named(function, said):
    with pytest.raises(ConfigError, match=said) as error:
        onnx_model(traced(function))
    assert "--to stablehlo" in error.value.message


def test_only_fields_that_the_output_depends_on_are_inputs():
    fields = {"text": ((3,), "int32"), "mask": ((), "float32"), "image": ((2,), "float32")}  # not sorted by name

    def apply(params, state, batch, *, train, key):
        hidden = batch["image"] @ params["kernel"] * batch["mask"][:, None]
        return Outputs(hidden, (batch["text"] * 1.0, hidden)), state

    model = Model(lambda key, batch: ({}, {}), apply)
    found = network_of(model, Variables({"kernel": np.ones((2, 2), np.float32)}, {}), fields)
    assert found.inputs == {"image": ((2,), "float32")} and found.output == "logits"
    assert found.shapes(any_number())["image"].shape[1:] == (2,)
