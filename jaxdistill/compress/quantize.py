"""8-bit quantisation of a frozen teacher: store and multiply its kernels in int8 or fp8.

Symmetric quantisation by the largest magnitude (Jacob et al., 2017, arxiv.org/abs/1712.05877), with one scale for each
output of a kernel, and a dynamic scale for each row of the other factor (vector-wise, as in LLM.int8, Dettmers et al.,
2022, arxiv.org/abs/2208.07339); fp8 is float8_e4m3fn (Micikevicius et al., 2022, arxiv.org/abs/2209.05433):

    w = max |W[:, j]| / m,    a = max |x[i, :]| / m,    m = 127 or 448
    y[i, j] = a[i] w[j] sum_k round(x[i, k] / a[i]) round(W[k, j] / w[j])

The modules of a model contain no code for quantisation, so it works for every model. The model is traced, and its jaxpr
is evaluated with quantised kernels. Casts, calls, scans over stacked layers and matrix products keep a kernel in 8
bits. Any other operation (a convolution, a head that is returned as `Factored` logits) gets the dequantised kernel.

Qwix 0.1.8 has the same arithmetic, but finds kernels by intercepting module calls. In this library the kernels of
blocks are merged into modules inside a scan, where Qwix would leave them as floats and quantise them again in every
step.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.marked_arrays import plain
from jaxdistill.core.quantized_array import DTYPES, Kind, QuantizedArray, quantize, run_quantized
from jaxdistill.core.types import Array, Key, Outputs, Params, PyTree, RowsLike, State, Variables

SCALE = "/scale"  # suffix of the name of a kernel's scale


def quantized(model: Model, kind: Kind) -> Model:
    """Return the same model with its kernels (weight matrices) stored in 8 bits; the new model cannot be trained.

    A kernel W becomes 8-bit values and float32 scales, one for each output: `W ~ values * scale`, where scale is the
    maximum of `|W|` over the inputs, divided by 127 (int8) or 448 (fp8). The scale of a kernel `up/kernel` is the
    additional parameter `up/kernel/scale`.

    Args:
        model: the model, with floating-point kernels.
        kind: "int8" or "fp8".
    """

    def init(key: Array, batch: Mapping[str, Array]) -> tuple[PyTree, PyTree]:
        params, state = model.init(key, batch)
        return quantize_params(params, kind), state

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs[Any], State]:
        forward = lambda v, rows, key: model.apply(v.params, v.state, rows, train=train, key=key)
        trace: Any = jax.make_jaxpr(forward, return_shape=True)
        traced, out = trace(dequantized_shapes(Variables(params, state)), batch, key)
        is_quantized = lambda x: isinstance(x, QuantizedArray)
        inputs = jax.tree.leaves((_with_quantized_arrays(params), state, batch, key), is_leaf=is_quantized)
        return jax.tree.unflatten(jax.tree.structure(out), map(plain, run_quantized(traced, inputs)))

    if (load_floats := model.load) is None:
        return model._replace(init=init, apply=apply)

    def load(shapes: Variables) -> Pretrained:
        pretrained = load_floats(dequantized_shapes(shapes))
        return pretrained._replace(read=lambda: quantize_like(pretrained.read(), shapes))

    return model._replace(init=init, apply=apply, load=load)


def quantize_params(params: Mapping[str, Array], kind: Kind) -> dict[str, Array]:
    """Quantise the kernels (weight matrices) among a model's parameters to 8 bits, and add their scales.

    A kernel is an array with at least two axes whose name ends in "kernel".

    Args:
        params: the parameters of a model, by name.
        kind: "int8" or "fp8".

    Returns:
        All parameters of the quantised model. A kernel `up/kernel` is about `up/kernel * up/kernel/scale`, the product
        of its 8-bit values and its scale; other parameters are unchanged.
    """
    quantized_params = {}
    for name, x in params.items():
        if not _is_kernel(name, x):
            quantized_params[name] = x
            continue
        quantized_params[name], quantized_params[name + SCALE] = quantize(x, -2, kind)
    return quantized_params


def quantize_like(values: Variables, shapes: Variables) -> Variables:
    """Quantise a model's floating-point variables, such as those of a checkpoint, to the 8-bit dtypes in `shapes`.

    The result also gets the shardings in `shapes`. If no dtype in `shapes` has 8 bits, the variables are returned
    unchanged.

    Args:
        values: variables (parameters and state) of the model before quantisation.
        shapes: shapes, dtypes and shardings of the quantised model's variables.
    """
    kinds = [kind for kind, (dtype, _) in DTYPES.items() for x in shapes.params.values() if x.dtype == dtype]
    if not kinds:
        return values
    shardings = jax.tree.map(lambda x: x.sharding, shapes.params)
    convert = jax.jit(quantize_params, static_argnums=1, out_shardings=shardings)
    return values._replace(params=convert(values.params, kinds[0]))


def dequantized_shapes(values: Variables) -> Variables:
    """Return the shapes that a quantised model's variables have before quantisation, for example in a checkpoint.

    Each 8-bit kernel (weight matrix) is replaced by a float32 shape, and its scale is left out. Other variables are
    returned unchanged.

    Args:
        values: variables of the quantised model, or their shapes. Shapes keep their sharding.
    """

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
