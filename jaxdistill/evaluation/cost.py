"""Measure the cost of a model: the number of parameters, and the bytes, FLOPs and latency of a forward pass."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Variables
from jaxdistill.evaluation.flops import flops
from jaxdistill.parallel.mesh import make_mesh


def cost(model: Model, variables: Variables, rows: Mapping[str, Any], repeats: int = 20) -> dict[str, float | None]:
    """Measure the size of a model, and the FLOPs and the latency of its forward pass on one example.

    Args:
        model: the model.
        variables: the model's parameters and state, on one device.
        rows: a batch `{field: [1, ...]}` of one example.
        repeats: number of timed calls; the latency is the median of their times.

    Returns:
        A dictionary: `parameters` is the number of parameters, `bytes` the memory of parameters and state, `flops`
        counts matrix products and convolutions, and `latency_ms` is in milliseconds.
    """

    @jax.jit
    def forward(v: Variables, batch: Mapping[str, Any]) -> Array:
        out, _ = model.apply(v.params, v.state, batch, train=False, key=jax.random.key(0))
        return out.dense().logits

    # JAX caches traces of functions such as silu, perhaps made under a mesh of absent devices; set a mesh that exists
    with jax.set_mesh(make_mesh((1, 1, 1))):
        traced = forward.trace(variables, rows)
        compiled = traced.lower().compile()
    jax.block_until_ready(compiled(variables, rows))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(variables, rows))
        times.append(time.perf_counter() - start)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(variables.params)),
        "bytes": sum(x.nbytes for x in jax.tree.leaves(variables)),
        "flops": flops(traced.jaxpr).total,
        "latency_ms": 1000 * statistics.median(times),
    }
