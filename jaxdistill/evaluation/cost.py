"""Measure the cost of a model: the number of parameters, and the bytes and FLOPs of a forward pass."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Variables
from jaxdistill.evaluation.flops import flops
from jaxdistill.parallel.mesh import make_mesh


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
