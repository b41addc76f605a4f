"""A frozen teacher in 8 bits: its kernels are kept, and its products taken, in int8 or in fp8.

Symmetric quantisation by the largest magnitude (Jacob et al., 2017, arxiv.org/abs/1712.05877), with a scale for each
output of a kernel and, taken anew, for each row of what it is multiplied with (LLM.int8's vectors, Dettmers et al.,
2022, arxiv.org/abs/2208.07339); fp8 is float8_e4m3fn (Micikevicius et al., 2022, arxiv.org/abs/2209.05433):

    w = max |W[:, j]| / m,    a = max |x[i, :]| / m,    m = 127 or 448
    y[i, j] = a[i] w[j] sum_k round(x[i, k] / a[i]) round(W[k, j] / w[j])

No module knows of it. A model's trace is run again with its kernels in this form: casts, calls, scans over stacked
layers and products keep it, whatever else reads a kernel (a convolution, a head that stays factored) gets floats made
of it. So it serves every model. Qwix 0.1.8 does the same arithmetic, but finds kernels by intercepting a module's call:
those of blocks that are merged inside a scan, as ours are, stay float, and are quantised anew in every step.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.quantized_array import DTYPES, Kind, QuantizedArray, narrow, run, wide
from jaxdistill.core.types import Array, Model, Pretrained, PyTree, Variables

SCALE = "/scale"  # what is added to a kernel's name


def quantized(model: Model, kind: Kind) -> Model:
    """The model with its kernels in 8 bits: `up/kernel` is joined by `up/kernel/scale`. It cannot be trained."""

    def init(key: Array, batch: Mapping[str, Array]) -> tuple[PyTree, PyTree]:
        params, state = model.init(key, batch)
        return narrowed(params, kind), state

    def apply(params, state, batch, *, train, key):
        plain = lambda v, rows, key: model.apply(v.params, v.state, rows, train=train, key=key)
        trace: Any = jax.make_jaxpr(plain, return_shape=True)
        traced, out = trace(widened(Variables(params, state)), batch, key)
        given = jax.tree.leaves((_paired(params), state, batch, key), is_leaf=lambda x: isinstance(x, QuantizedArray))
        return jax.tree.unflatten(jax.tree.structure(out), map(wide, run(traced, given)))

    if (find := model.load) is None:
        return Model(init, apply)

    def load(shapes: Variables) -> Pretrained:
        found = find(widened(shapes))
        return found._replace(read=lambda: narrowed_as(found.read(), shapes))

    return Model(init, apply, load)


def narrowed(params: Mapping[str, Array], kind: Kind) -> dict[str, Array]:
    """Parameters with their kernels in 8 bits."""
    found = {}
    for name, x in params.items():
        if not _is_kernel(name, x):
            found[name] = x
            continue
        found[name], found[name + SCALE] = narrow(x, -2, kind)
    return found


def narrowed_as(values: Variables, shapes: Variables) -> Variables:
    """Variables as `shapes` say, in their shards: they are themselves where nothing of it is in 8 bits."""
    kinds = [kind for kind, (dtype, _) in DTYPES.items() for x in shapes.params.values() if x.dtype == dtype]
    if not kinds:
        return values
    layout = jax.tree.map(lambda x: x.sharding, shapes.params)
    return values._replace(params=jax.jit(narrowed, static_argnums=1, out_shardings=layout)(values.params, kinds[0]))


def widened(values: Variables) -> Variables:
    """Variables of which what is in 8 bits became shapes of floats, in the same shards: what a checkpoint holds."""

    def floats(x: Any) -> jax.ShapeDtypeStruct:
        layout = x.sharding if isinstance(x, jax.ShapeDtypeStruct) else None
        return jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=layout)

    params = {name: x for name, x in values.params.items() if not name.endswith("kernel" + SCALE)}
    return values._replace(params={n: floats(x) if n + SCALE in values.params else x for n, x in params.items()})


def _is_kernel(name: str, x: Any) -> bool:
    return name.endswith("kernel") and x.ndim > 1


def _paired(params: Mapping[str, Array]) -> dict[str, Array | QuantizedArray]:
    paired = {
        name: QuantizedArray(x, params[name + SCALE], jnp.float32)
        for name, x in params.items()
        if name + SCALE in params
    }
    return {n: paired.get(n, x) for n, x in params.items() if n.removesuffix(SCALE) not in paired or n in paired}
