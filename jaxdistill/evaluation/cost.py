"""Measure the cost of a model: the number of parameters, and the bytes, FLOPs and latency of a forward pass."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Variables
from jaxdistill.evaluation.flops import flops
from jaxdistill.parallel.mesh import make_mesh

ROUNDS, SLICE = 50, 0.02  # how often each model has its turn, and the least seconds of a turn


class Latency(NamedTuple):
    """The time of one forward pass of a model, in milliseconds.

    median: the median over the turns of the model
    low, high: the 10th and the 90th percentile over the turns
    """

    median: float
    low: float
    high: float


def cost(model: Model, variables: Variables, rows: Mapping[str, Any]) -> dict[str, float]:
    """Measure the size of a model, and count the FLOPs of its forward pass on one example.

    Args:
        model: the model.
        variables: the model's parameters and state, or their shapes.
        rows: a batch `{field: [1, ...]}` of one example.

    Returns:
        A dictionary: `parameters` is the number of parameters, `bytes` the memory of parameters and state, `flops`
        counts matrix products and convolutions.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    with jax.set_mesh(make_mesh((1, 1, 1))):
        traced = _forward(model).trace(shapes, rows)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
        "bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)),
        "flops": flops(traced.jaxpr).total,
    }


def _forward(model: Model) -> Any:
    @jax.jit
    def forward(v: Variables, batch: Mapping[str, Any]) -> Array:
        out, _ = model.apply(v.params, v.state, batch, train=False, key=jax.random.key(0))
        return out.dense().logits

    return forward


def forward_pass(model: Model, variables: Variables, rows: Mapping[str, Any]) -> Callable[[], None]:
    """Compile the forward pass of a model on one device, and return a function that runs it and waits for its end.

    Args:
        model: the model.
        variables: the model's parameters and state, on one device.
        rows: a batch `{field: [1, ...]}` of one example.
    """
    # JAX caches traces of functions such as silu, perhaps made under a mesh of absent devices; set a mesh that exists
    with jax.set_mesh(make_mesh((1, 1, 1))):
        compiled = _forward(model).trace(variables, rows).lower().compile()

    def run() -> None:
        jax.block_until_ready(compiled(variables, rows))

    return run


def latencies(passes: Mapping[str, Callable[[], None]]) -> dict[str, Latency]:
    """Time several functions in turns, so that a change of the machine's load meets all of them alike.

    Each function has `ROUNDS` turns, of one call or of as many as take `SLICE` seconds.

    Args:
        passes: the functions by name, such as those of `forward_pass`.
    """
    calls = {}
    for name, run in passes.items():
        run()
        once = min(_seconds(run, 1) for _ in range(3))
        calls[name] = max(1, int(SLICE / max(once, 1e-7)))
    turns: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(ROUNDS):
        for name, run in passes.items():
            turns[name].append(1000 * _seconds(run, calls[name]) / calls[name])
    return {name: Latency(*(float(x) for x in np.percentile(times, (50, 10, 90)))) for name, times in turns.items()}


def _seconds(run: Callable[[], None], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - start
