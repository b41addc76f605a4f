"""8-bit quantisation of a frozen teacher: store and multiply its kernels in int8 or fp8.

Symmetric quantisation by the largest magnitude (Jacob et al., 2017, arxiv.org/abs/1712.05877), with one scale for each
output of a kernel, and a dynamic scale for each row of the other factor (vector-wise, as in LLM.int8, Dettmers et al.,
2022, arxiv.org/abs/2208.07339); fp8 is float8_e4m3fn (Micikevicius et al., 2022, arxiv.org/abs/2209.05433):

    w = max |W[:, j]| / m,    a = max |x[i, :]| / m,    m = 127 or 448
    y[i, j] = a[i] w[j] sum_k round(x[i, k] / a[i]) round(W[k, j] / w[j])

No module contains code for it, so it serves every model. The model is traced, and its jaxpr is evaluated with quantised
kernels. Casts, calls, scans over stacked layers and matrix products keep a kernel in 8 bits. Any other operation (a
convolution, a head that stays factored) gets the dequantised kernel. Qwix 0.1.8 has the same arithmetic, but finds
kernels by intercepting module calls. It would leave the kernels of blocks that are merged inside a scan, as ours are,
as floats, and quantise them again in every step.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.quantized_array import DTYPES, Kind, QuantizedArray, dequantize, quantize, run_quantized
from jaxdistill.core.types import Array, PyTree, Variables

SCALE = "/scale"  # suffix of the name of a kernel's scale


def quantized(model: Model, kind: Kind) -> Model:
    """Return the model with its kernels in 8 bits. It cannot be trained.

    A quantised kernel `up/kernel` has its scale in the parameter `up/kernel/scale`.

    Args:
        model: the model.
        kind: "int8" or "fp8".
    """

    def init(key: Array, batch: Mapping[str, Array]) -> tuple[PyTree, PyTree]:
        params, state = model.init(key, batch)
        return quantize_params(params, kind), state

    def apply(params, state, batch, *, train, key):
        forward = lambda v, rows, key: model.apply(v.params, v.state, rows, train=train, key=key)
        trace: Any = jax.make_jaxpr(forward, return_shape=True)
        traced, out = trace(dequantized_shapes(Variables(params, state)), batch, key)
        is_quantized = lambda x: isinstance(x, QuantizedArray)
        inputs = jax.tree.leaves((_with_quantized_arrays(params), state, batch, key), is_leaf=is_quantized)
        return jax.tree.unflatten(jax.tree.structure(out), map(dequantize, run_quantized(traced, inputs)))

    if (load_floats := model.load) is None:
        return Model(init, apply)

    def load(shapes: Variables) -> Pretrained:
        pretrained = load_floats(dequantized_shapes(shapes))
        return pretrained._replace(read=lambda: quantize_like(pretrained.read(), shapes))

    return Model(init, apply, load)


def quantize_params(params: Mapping[str, Array], kind: Kind) -> dict[str, Array]:
    """Quantise the kernels among the parameters to 8 bits, and add their scales."""
    quantized_params = {}
    for name, x in params.items():
        if not _is_kernel(name, x):
            quantized_params[name] = x
            continue
        quantized_params[name], quantized_params[name + SCALE] = quantize(x, -2, kind)
    return quantized_params


def quantize_like(values: Variables, shapes: Variables) -> Variables:
    """Quantise variables as in `shapes`, with the same sharding.

    They are unchanged if `shapes` has no 8-bit array.
    """
    kinds = [kind for kind, (dtype, _) in DTYPES.items() for x in shapes.params.values() if x.dtype == dtype]
    if not kinds:
        return values
    shardings = jax.tree.map(lambda x: x.sharding, shapes.params)
    convert = jax.jit(quantize_params, static_argnums=1, out_shardings=shardings)
    return values._replace(params=convert(values.params, kinds[0]))


def dequantized_shapes(values: Variables) -> Variables:
    """Return the shapes of the variables before quantisation, as in a checkpoint, with the same sharding."""

    def floats(x: Any) -> jax.ShapeDtypeStruct:
        sharding = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else None
        return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=sharding)

    params = {name: x for name, x in values.params.items() if not name.endswith("kernel" + SCALE)}
    return values._replace(params={n: floats(x) if n + SCALE in values.params else x for n, x in params.items()})


def _is_kernel(name: str, x: Any) -> bool:
    return name.endswith("kernel") and x.ndim > 1


def _with_quantized_arrays(params: Mapping[str, Array]) -> dict[str, Array | QuantizedArray]:
    arrays = {
        name: QuantizedArray(x, params[name + SCALE], jnp.float32)
        for name, x in params.items()
        if name + SCALE in params
    }
    return {n: arrays.get(n, x) for n, x in params.items() if n.removesuffix(SCALE) not in arrays or n in arrays}
