"""What a model costs: parameters, bytes, FLOPs and time of a forward pass."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax

from jaxdistill.core.types import Array, Model, Variables
from jaxdistill.evaluation.flops import flops
from jaxdistill.parallel.mesh import make_mesh


def cost(model: Model, variables: Variables, rows: Mapping[str, Any], repeats: int = 20) -> dict[str, float | None]:
    """Measures what a forward pass of one example costs.

    Args:
        model: a network.
        variables: its own, on one device.
        rows: a batch of one example.
        repeats: timed calls; the median is reported.

    Returns:
        parameters (count), bytes (of parameters and state), flops (of products and convolutions), latency_ms.
    """

    @jax.jit
    def forward(v: Variables, batch: Mapping[str, Any]) -> Array:
        out, _ = model.apply(v.params, v.state, batch, train=False, key=jax.random.key(0))
        return out.dense().logits

    # of silu and the like JAX keeps a trace that was made under another mesh; its mesh must be one that is there
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
