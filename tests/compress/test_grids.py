"""Tests that the grids choose the integers and scales that ONNX Runtime, LiteRT and gguf choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.compress.grids import GRIDS, grid, round_in_range, round_rows, straight_through, values

ROWS = np.concatenate(
    [
        np.random.default_rng(0).normal(size=(6, 128)),
        np.random.default_rng(1).standard_t(2, size=(6, 128)) * 1e-3,
        np.zeros((1, 128)),
        np.linspace(-3.5, 3.5, 128)[None],
    ]
).astype(np.float32)


def rounded(bits: int, block: int = 0):
    return jax.tree.map(np.asarray, jax.jit(lambda x: grid(bits, block)(x)[:2])(ROWS))


def test_rows_are_rounded_as_onnx_runtime_rounds_them():
    quant_utils = pytest.importorskip("onnxruntime.quantization.quant_utils")
    from onnx import TensorProto

    integers, scales = rounded(8)
    for row, mine, scale in zip(ROWS, integers, scales, strict=True):
        if not row.any():  # ONNX Runtime gives a row of zeros the scale 1
            assert not mine.any()
            continue
        _, theirs, expected = quant_utils.quantize_data(row, TensorProto.INT8, symmetric=True)
        np.testing.assert_array_equal(mine[0], expected)
        np.testing.assert_allclose(scale[0, 0], theirs, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_rounded_as_the_quantizer_of_litert_rounds_them(bits):
    tensors = pytest.importorskip("litert_quantizer.algorithms.uniform_quantize.uniform_quantize_tensor")
    from litert_quantizer import qtyping

    least, most = ROWS.min(1, keepdims=True), ROWS.max(1, keepdims=True)
    zero, scale = tensors.tensor_zp_scale_from_min_max(
        least, most, bits, True, granularity=qtyping.QuantGranularity.CHANNELWISE
    )
    params = qtyping.UniformQuantParams(
        num_bits=bits, quantized_dimension=0, scale=scale, zero_point=zero, symmetric=True
    )
    integers, scales = rounded(bits)
    np.testing.assert_array_equal(integers[:, 0], tensors.uniform_quantize(ROWS, params))
    full = ROWS.any(1)
    np.testing.assert_allclose(scales[full, 0], scale[full], rtol=1e-6)


@pytest.mark.parametrize(("bits", "kind"), [(8, "Q8_0"), (4, "Q4_0")])
def test_blocks_are_rounded_as_the_writer_of_gguf_rounds_them(bits, kind):
    gguf = pytest.importorskip("gguf")
    encoding = gguf.GGMLQuantizationType[kind]
    packed = gguf.quantize(ROWS, encoding)
    found = jax.tree.map(np.asarray, jax.jit(lambda x: grid(bits, 32)(x)[:2])(ROWS))
    np.testing.assert_array_equal((found[0] * found[1]).reshape(ROWS.shape), gguf.dequantize(packed, encoding))
    blocks = packed.reshape(*ROWS.shape[:1], 4, -1)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found[1], scales)


def test_three_values_stand_for_a_row_by_its_mean_magnitude():
    row = jnp.asarray([[4.0, -1.0, 0.4, -0.6, 0.0, 2.0]])  # mean magnitude 8 / 6
    found = grid(2, 0)(row)
    np.testing.assert_allclose(found.scales, [[[8 / 6]]], rtol=1e-6)
    np.testing.assert_array_equal(found.integers[0, 0], [1, -1, 0, 0, 0, 1])


@pytest.mark.parametrize(("bits", "block"), GRIDS)
def test_rounding_again_changes_nothing_and_zero_stays_zero(bits, block):
    once = values(grid(bits, block)(jnp.asarray(ROWS)))
    assert not np.asarray(once)[12].any()
    assert (np.asarray(once)[ROWS == 0] == 0).all()
    if bits == 2:  # the scale is the mean magnitude, which rounding changes
        return
    np.testing.assert_allclose(values(grid(bits, block)(once)), once, rtol=1e-6, atol=0)


def test_every_grid_keeps_to_its_integers():
    for (bits, block), chosen in GRIDS.items():
        found = chosen(jnp.asarray(ROWS))
        assert found.low >= -(2 ** (bits - 1)) and found.high <= 2 ** (bits - 1) - 1, (bits, block)
        integers = np.asarray(found.integers)
        np.testing.assert_array_equal(integers, np.round(integers))
        assert integers.min() >= found.low and integers.max() <= found.high
        assert integers.min() == found.low or integers.max() == found.high  # the grid is used up to its end


def test_unknown_grids_are_named():
    with pytest.raises(ValueError, match=r"no grid for weights=2 with block=32\. Known: weights=8, weights=4"):
        grid(2, 32)


@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.2), (0.0, 5.0), (-0.7, 0.0)])
def test_fixed_ranges_are_those_of_onnx(low, high):
    reference = pytest.importorskip("onnx.reference")
    from onnx import TensorProto, helper

    scale = np.float32((np.float32(high) - np.float32(low)) / 255)
    zero = np.int8(np.clip(np.round(-128 - np.float32(low) / scale), -128, 127))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    info = lambda name, kind, shape: helper.make_tensor_value_info(name, kind, shape)
    graph = helper.make_graph(
        nodes,
        "round",
        [info("x", TensorProto.FLOAT, [None]), info("s", TensorProto.FLOAT, []), info("z", TensorProto.INT8, [])],
        [info("y", TensorProto.FLOAT, [None])],
    )
    x = np.random.default_rng(0).normal(0, 2, 400).astype(np.float32)
    model = reference.ReferenceEvaluator(helper.make_model(graph))
    expected = model.run(None, {"x": x, "s": scale, "z": zero})[0]
    found = round_in_range(jnp.asarray(x), jnp.float32(low), jnp.float32(high), 8)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_values_outside_a_fixed_range_have_no_gradient():
    x = jnp.asarray([-3.0, -0.5, 0.2, 0.9, 4.0])
    for bits in (8, 16):
        gradient = jax.grad(lambda x, bits=bits: round_in_range(x, jnp.float32(-1), jnp.float32(1), bits).sum())(x)
        np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 0])


def test_a_range_of_16_bits_is_symmetric_around_its_greater_end():
    x = jnp.asarray([-2.5, -1.9, 0.3, 1.7])
    found = np.float64(round_in_range(x, jnp.float32(-2), jnp.float32(1), 16))
    step = 2 / 32767
    np.testing.assert_allclose(found, [-32768 * step, *(np.round(np.float64(x[1:]) / step) * step)], rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_rows_of_inputs_have_their_own_scale(bits):
    x = np.random.default_rng(0).normal(size=(3, 4, 50)).astype(np.float32) * [[[1]], [[100]], [[1e-3]]]
    found = np.asarray(round_rows(jnp.asarray(x, jnp.float32), (2,), bits), np.float64)
    step = np.abs(x).max(2, keepdims=True) / (2 ** (bits - 1) - 1)
    assert (np.abs(found - x) <= 0.501 * step).all()
    np.testing.assert_allclose(found / step, np.round(found / step), atol=0.02)
    assert np.abs(found - x).max() > 0.3 * step.max()  # the inputs are rounded at all


def test_the_straight_through_value_is_the_rounded_one_to_the_bit():
    x = jnp.asarray(ROWS) * 1e3 + 0.1
    rounded_values = jnp.round(x)
    np.testing.assert_array_equal(straight_through(x, rounded_values), rounded_values)
    np.testing.assert_array_equal(jax.grad(lambda x: (3 * straight_through(x, jnp.round(x))).sum())(x), 3)
