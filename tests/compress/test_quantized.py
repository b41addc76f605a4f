"""Tests of a frozen teacher in 8 bits: its outputs are nearly the same, its kernels take a quarter of the bytes."""

import functools
import io
import json
import re

import batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from examples import MODELS, every
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

import jaxdistill
from jaxdistill.compress.quantize import quantize_params, quantized
from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Pretrained
from jaxdistill.core.quantized_array import QuantizedArray, quantize, run_quantized
from jaxdistill.core.types import Variables
from jaxdistill.models.combinators import in_dtype
from jaxdistill.parallel.compile import shard_variables
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.run.config import differ
from jaxdistill.run.distill import check_config
from jaxdistill.run.resolve import resolve

KEY = jax.random.key(0)
FIRST = {name: table[:1] for name, table in MODELS.items()}
SCANNED = "decoder(vocabulary=10, width=16, depth=3, heads=4, kv_heads=2, head_size=8, ffn=32)"


def said(model, variables, rows):
    """Return the logits of a model and the text of its lowered program."""
    forward = lambda v, rows: model.apply(*v, rows, train=False, key=KEY)[0].dense().logits
    lowered = jax.jit(forward).lower(variables, rows)
    return np.asarray(lowered.compile()(variables, rows), np.float32), lowered.as_text()


@functools.cache
def world(spec: str, inputs: str):
    model, rows = registry.models.build(spec, ""), batches.BATCHES[inputs](rows=8, classes=5)
    return model, Variables(*jax.jit(model.init)(KEY, rows)), rows


def unlike(found, wanted) -> float:
    """Return the RMS error of logits divided by the spread of `wanted`, without rows that are not compared (-1e9)."""
    told = wanted > -1e6
    return float(np.sqrt(np.mean((found[told] - wanted[told]) ** 2)) / wanted[told].std())


def rolled(values: Variables) -> Variables:
    """Return broken values, in which every output of a kernel has the scale of its neighbour."""
    move = lambda name, x: jnp.roll(x, 1, -1) if name.endswith("kernel/scale") else x
    return values._replace(params={name: move(name, x) for name, x in values.params.items()})


@pytest.mark.sampled("mlp*", "decoder*")
@every(FIRST)
def test_a_model_in_8_bits_says_nearly_the_same(example):
    model, values, rows = world(example.spec, example.inputs)
    wanted, _ = said(model, values, rows)
    small = values._replace(params=quantize_params(values.params, "int8"))
    assert unlike(said(quantized(model, "int8"), small, rows)[0], wanted) < 0.06
    assert unlike(said(quantized(model, "int8"), rolled(small), rows)[0], wanted) > 0.12


def test_fp8_has_fewer_digits():
    model, values, rows = world(SCANNED, "tokens")
    found, text = said(quantized(model, "fp8"), values._replace(params=quantize_params(values.params, "fp8")), rows)
    assert unlike(found, said(model, values, rows)[0]) < 0.25
    assert len(re.findall(r"dot_general.*xf8E4M3FN>.*xf32>", text)) == 7


@pytest.mark.sampled("*full'-float32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("more", ["", ", remat='full'"])
def test_products_of_scanned_layers_are_in_8_bits_and_their_stack_is_never_floats(dtype, more):
    spec = SCANNED.replace(")", f"{more})")
    model, values, rows = world(spec, "tokens")
    model = in_dtype(model, dtype) if dtype != "float32" else model
    text = said(quantized(model, "int8"), values._replace(params=quantize_params(values.params, "int8")), rows)[1]
    assert len(re.findall(r"dot_general.*xi8>.*xi32>", text)) == 7  # query, key, value, out, gate, up, down
    assert not re.search(r"convert .*tensor<3x\d+x\d+xi8>\) -> tensor<3x\d+x\d+xf32>", text)


def test_kernels_take_a_quarter_of_their_bytes():
    _, values, _ = world(SCANNED, "tokens")
    size = lambda params: sum(x.nbytes for name, x in params.items() if "kernel" in name)
    scales = sum(x.shape[0] * x.shape[-1] * 4 for name, x in values.params.items() if "kernel" in name)
    assert size(quantize_params(values.params, "int8")) == size(values.params) / 4 + scales


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_scales_are_those_of_rows_and_outputs_by_hand(kind):
    x = jnp.array([[1.0, -2.0], [0.0, 0.0], [100.0, 0.4]])
    most = {"int8": 127, "fp8": 448}[kind]
    np.testing.assert_allclose(quantize(x, -1, kind)[1][:, 0], [2 / most, 1e-30 / most, 100 / most], rtol=1e-6)
    values, scale = quantize(x, -2, kind)
    np.testing.assert_allclose(scale[0], [100 / most, 2 / most], rtol=1e-6)
    # The greatest rounding errors: half a step of the integers, or half of the last of 3 mantissa bits.
    step = {"int8": scale / 2, "fp8": jnp.abs(x) / 16 + 1e-6}[kind]
    assert (jnp.abs(QuantizedArray(values, scale, jnp.float32).plain() - x) <= step * 1.001).all()


def test_every_row_of_what_is_multiplied_has_a_scale_of_its_own():
    """Check that a row a thousand times smaller than another is not rounded to 0, as with one scale for all rows."""
    x, kernel = jnp.array([[1.0, -2.0, 0.5], [1e-3, -2e-3, 5e-4]]), jnp.eye(3)
    y = run_quantized(
        jax.make_jaxpr(jnp.matmul)(x, kernel), [x, QuantizedArray(*quantize(kernel, -2, "int8"), jnp.float32)]
    )[0]
    np.testing.assert_allclose(y, x, rtol=0.02)


def test_products_of_another_form_are_those_of_the_dequantized_kernel():
    """Check two products that are computed in floats: one kernel per row, as for experts, and two 8-bit arrays."""
    draw = np.random.default_rng(0)
    x, kernels = (draw.normal(size=size).astype(np.float32) for size in ((2, 3), (2, 3, 4)))
    small = QuantizedArray(*quantize(jnp.asarray(kernels), -2, "int8"), jnp.float32)
    rows = lambda x, k: jnp.einsum("bi,bio->bo", x, k)
    found = run_quantized(jax.make_jaxpr(rows)(x, kernels), [x, small])[0]
    np.testing.assert_allclose(found, rows(x, small.plain()), rtol=1e-6)
    left = QuantizedArray(*quantize(jnp.asarray(x), -1, "int8"), jnp.float32)
    right = QuantizedArray(*quantize(jnp.asarray(kernels[0]), -2, "int8"), jnp.float32)
    found = run_quantized(jax.make_jaxpr(jnp.matmul)(x, kernels[0]), [left, right])[0]
    np.testing.assert_allclose(found, left.plain() @ right.plain(), rtol=1e-6)


def test_a_config_has_its_teacher_in_8_bits(taught):
    made = (
        resolve(eight(taught[0]), jax.devices())
        .live_teacher("big")
        .network.init(KEY, {"image": jnp.zeros((2, 8, 8, 1), jnp.uint8)})[0]
    )
    assert {name.rsplit("/", 1)[-1] for name, x in made.items() if x.dtype == jnp.int8} == {"kernel"}


def test_on_a_mesh_it_says_what_it_says_on_one_device_and_is_read_into_its_shards():
    model, values, rows = world(SCANNED, "tokens")
    mesh = make_mesh((2, 2, 2))
    model = quantized(model._replace(load=lambda shapes: Pretrained((), lambda: shard_variables(values, mesh))), "int8")
    layout = {"blocks/up/kernel": PartitionSpec(None, "fsdp", "tensor")}
    shapes = jax.eval_shape(lambda: Variables(*model.init(KEY, rows)))
    shard = lambda name, x: NamedSharding(mesh, layout.get(name, PartitionSpec()))
    params = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard(n, x)) for n, x in shapes.params.items()}
    read = model.load(shapes._replace(params=params)).read()
    kernel = read.params["blocks/up/kernel"]
    assert kernel.dtype == jnp.int8 and kernel.sharding.spec == layout["blocks/up/kernel"]
    alone, _ = said(model, values._replace(params=quantize_params(values.params, "int8")), rows)
    with jax.set_mesh(mesh):
        assert unlike(said(model, read, rows)[0], alone) < 0.01


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Train a teacher; yield the config of a student that reads its checkpoint, and the folder of the run."""
    with runs.registries_as_found(), runs.compilation_cache(tmp_path_factory.mktemp("compiled")):
        workdir = tmp_path_factory.mktemp("teacher")
        config = differ(runs.load(), steps=10, control=False, evaluate={"every": 10}, logging={"every": 1})
        distilled(config, workdir)
        teacher = {**config.teachers["big"].to_dict(), "steps": 0, "checkpoint": str(workdir / "teachers" / "big")}
        yield differ(config, teachers={"big": teacher}, objective={"kd": {}}), workdir


def distilled(config, workdir):
    return jaxdistill.distill(config, workdir, console=Console(file=io.StringIO()))


def eight(config, **changes):
    return differ(config, teachers={"big": {**config.teachers["big"].to_dict(), "quantized": "int8", **changes}})


def losses(run):
    return np.array([line["loss"] for line in runs.log(run.workdir / "student").train])


@pytest.mark.slow
def test_a_student_learns_from_it_what_it_learns_from_floats(taught, tmp_path):
    config, _ = taught
    floats, small = distilled(config, tmp_path / "floats"), distilled(eight(config), tmp_path / "small")
    np.testing.assert_allclose(losses(small), losses(floats), rtol=0.01)
    rows = [{row["name"]: row["bytes"] for row in run.rows}["teacher big"] for run in (floats, small)]
    assert rows[1] < 0.5 * rows[0]  # a half and no quarter, since so narrow a network has many biases and scales
    result = json.loads((small.workdir / "student/result.json").read_text())
    assert result["compiled"] == {"update": 1, "evaluate": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teachers": {"steps": 5, "checkpoint": ""}}, "this run trains the teacher, and int8 has no gradient"),
        ({"step": "tuned_teacher()", "streams": {"quiz": {"split": "extra"}}}, "'tuned_teacher()' trains teachers"),
        ({"step": "mutual()"}, "'mutual()' trains teachers, and int8 has no gradient"),
        (
            {"objective": {"jacobian": {}}},
            "needs input_gradients, and int8 has no gradient. Remove teachers.big.quantized",
        ),
    ],
)
def test_what_8_bits_cannot_do_is_refused(taught, tmp_path, changes, said):
    config = eight(taught[0], **changes.pop("teachers", {}))
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_config(differ(config, **changes), tmp_path)
