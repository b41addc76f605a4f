"""Convert a Flax NNX module to a `Model`, which is a pair of pure functions.

The module is split once into a graph definition and flat dicts of arrays, `{"blocks/0/mlp/up/kernel": array}`. It is
merged again inside `jit`, while tracing, so that merging costs nothing at run time. (`nnx.jit(module)` splits the
module at every call.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Outputs, PyTree, RowsLike

Call = Callable[[Any, RowsLike, bool, Array], Outputs]  # (module, batch, train, key) -> outputs


def _call(module: Any, batch: RowsLike, train: bool, key: Array) -> Outputs:
    return module(batch, train=train, key=key)


def from_nnx(make: Callable[[nnx.Rngs, RowsLike], nnx.Module], call: Call = _call) -> Model:
    """Convert a Flax NNX module to a `Model`, a pair of pure functions `init` and `apply`.

    `nnx.Param` variables become params. All other variables (running statistics, counters, caches) become state, except
    the random streams (`nnx.Rngs`), which are seeded from the key of each call. State changes only in training, but an
    `nnx.Cache` may change in every call.

    Args:
        make: `(rngs, batch) -> module`, which creates the module; the arrays of `batch`, `{field: array}`, have the
            shapes of the module's inputs.
        call: `(module, batch, train, key) -> Outputs`, which runs the module. The default calls
            `module(batch, train=train, key=key)`. For your own module write, for example, `lambda module, batch, train,
            key: Outputs(logits=module(batch["image"]))`. To train on a mesh of three axes, a module must pass each
            layer's activations through `jaxdistill.by_rows`.
    """
    skeletons: dict[Any, tuple[Any, list[tuple[Any, Any]]]] = {}

    def skeleton_of(batch: RowsLike) -> tuple[Any, list[tuple[Any, Any]]]:
        shapes = tuple((name, x.shape[1:], x.dtype) for name, x in sorted(batch.items()))
        if shapes not in skeletons:  # cached, because the abstract trace takes tens of milliseconds
            graph, variables = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0), batch)))
            skeletons[shapes] = graph, list(nnx.to_flat_state(variables))
        return skeletons[shapes]

    def init(key: Array, batch: RowsLike) -> tuple[PyTree, PyTree]:
        return _collect(make(nnx.Rngs(key), batch))

    def apply(params: PyTree, state: PyTree, batch: RowsLike, *, train: bool, key: Array) -> tuple[Outputs, PyTree]:
        graph, variables = skeleton_of(batch)
        values = []
        for path, variable in variables:
            if isinstance(variable, nnx.RngState):
                value = _reseed(variable, key)
            else:
                name = _name(path)
                value = params[name] if isinstance(variable, nnx.Param) else state[name]
            values.append((path, variable.replace(value)))
        module = nnx.merge(graph, nnx.from_flat_state(values))
        out = call(module, batch, train, key)
        return out, {**state, **_collect(module, nnx.Variable if train else nnx.Cache)[1]}

    return Model(init, apply)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _collect(module: nnx.Module, kind: type[nnx.Variable] = nnx.Variable) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the params and state of a module as two flat dicts, name to array, of its variables of type `kind`."""
    params: dict[str, Array] = {}
    state: dict[str, Array] = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, kind)):
        if isinstance(variable, nnx.RngState):
            continue
        (params if isinstance(variable, nnx.Param) else state)[_name(path)] = variable.get_value()
    return params, state


def _reseed(variable: nnx.Variable, key: Array) -> Array:
    """Return the new value of a variable of a random stream: a key derived from the call's `key`, or the counter 0."""
    if isinstance(variable, nnx.RngKey):
        return jax.random.fold_in(key, 0)
    return jnp.zeros(variable.get_value().shape, jnp.uint32)
