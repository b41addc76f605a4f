"""Compile steps: jit them, donate their state, and lay out arrays on the mesh.

`jit` over a mesh is the main backend, `pmap` (`pmap.py`) a thin second one. Both return an `Engine` with the same
functions, and give parameters that agree to float32 rounding.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.core.collectives import ROWS
from jaxdistill.core.interfaces import Step
from jaxdistill.core.types import NO_VARIABLES, Array, PyTree, TrainState, Variables
from jaxdistill.parallel.mesh import row_shards
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules, shardings, with_shardings

Batch = Mapping[str, Mapping[str, Any]]
Evaluate = Callable[[PyTree, PyTree, tuple[Variables, ...], Mapping[str, Array]], PyTree]


class Engine(NamedTuple):
    """A step compiled for its devices.

    init: `(key, batch, start) -> TrainState`, never unsharded on one device; `start` is that of `StepInit`, donated
    update: `(train_state, batch) -> (train_state, metrics)`; donates the train state
    evaluate: `(train_state, rows) -> metrics`, sums over the global batch
    put: `batch of host arrays -> batch of device arrays`
    export: `train_state ->` the same tree as global arrays, for checkpoints and reports
    restore: inverse of `export`
    abstract: shapes and shardings of the result of `export`
    rows: `size of a global batch -> ` numbers of the rows that this process must supply
    compiled: `() -> {function: number of compiled programs}`
    traced: `() ->` the update as `jax.stages.Traced`, from shapes and shardings alone; None under pmap
    """

    init: Callable[[Array, Batch, Variables], TrainState]
    update: Callable[[TrainState, Batch], tuple[TrainState, PyTree]]
    evaluate: Callable[[TrainState, Mapping[str, Any]], PyTree]
    put: Callable[[PyTree], PyTree]
    export: Callable[[TrainState], TrainState]
    restore: Callable[[TrainState], TrainState]
    abstract: TrainState
    rows: Callable[[int], np.ndarray]
    compiled: Callable[[], dict[str, int]]
    traced: Callable[[], jax.stages.Traced] | None = None


def options_of_init() -> dict[str, int] | None:
    """Return compiler options for a program that runs once: on CPU, a ResNet's init compiles in 1 s instead of 6 s."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def place(variables: Variables, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Variables:
    """Lay out a model's variables on the mesh by its sharding rules."""
    return jax.device_put(variables, shardings(variables, mesh, rules))


def local_rows(mesh: Mesh, total: int) -> np.ndarray:
    """Return the rows of a batch of `total` that are on this process's devices, in increasing order, `[rows]`.

    The rows need not be adjacent: on a TPU, a host's chips are a square, and the mesh winds through all chips.
    """
    return rows_on(mesh, total, set(mesh.local_devices))


def rows_on(mesh: Mesh, total: int, devices: Collection[jax.Device]) -> np.ndarray:
    """Return the rows of a batch of `total` that are on some devices of the mesh, in increasing order, `[rows]`."""
    indices = NamedSharding(mesh, ROWS).devices_indices_map((total,))
    return np.unique(np.concatenate([np.arange(total)[indices[device]] for device in devices]))


def jit_engine(
    step: Step,
    evaluate: Evaluate,
    mesh: Mesh,
    teachers: tuple[Variables, ...],
    references: tuple[Variables, ...],
    batch: Batch,
    *,
    rules: Rules = DEFAULT_RULES,
) -> Engine:
    """Compile a step with `jit` over a mesh.

    Args:
        step: the training algorithm.
        evaluate: `(params, state, teachers, rows) -> metrics`.
        mesh: axes data, fsdp, tensor.
        teachers: frozen variables, already placed. They are arguments of the compiled program, because a closure would
            copy them into it as constants.
        references: the teachers that `evaluate` compares with; a control has references but no teachers.
        batch: shapes of a global batch, by stream.
        rules: layout of the train state.
    """
    by_rows, replicated = NamedSharding(mesh, ROWS), NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(step.init, jax.random.key(0), teachers, batch, NO_VARIABLES)
    layout = shardings(shapes, mesh, rules)
    layout_of = lambda models: jax.tree.map(lambda x: x.sharding, models)

    init = jax.jit(step.init, out_shardings=layout, compiler_options=options_of_init(), donate_argnums=3)
    # out_shardings are pinned: without them XLA re-sharded gradients and compiled twice
    update = jax.jit(
        step.update,
        in_shardings=(layout, layout_of(teachers), by_rows),
        out_shardings=(layout, replicated),
        donate_argnums=0,
    )
    measure = jax.jit(
        evaluate,
        in_shardings=(layout.params, layout.state, layout_of(references), by_rows),
        out_shardings=replicated,
    )

    on_mesh = lambda function: _on_mesh(function, mesh)
    abstract = with_shardings(shapes, layout)
    abstract_batch = jax.tree.map(lambda x: x.update(sharding=by_rows), batch)

    return Engine(
        init=on_mesh(lambda key, batch, start=NO_VARIABLES: init(key, teachers, batch, start)),
        update=on_mesh(lambda ts, batch: update(ts, teachers, batch)),
        evaluate=on_mesh(lambda ts, batch: measure(ts.params, ts.state, references, batch)),
        put=lambda batch: put_rows(batch, mesh),
        export=lambda ts: ts,
        restore=lambda ts: ts,
        abstract=abstract,
        rows=lambda total: local_rows(mesh, total),
        compiled=lambda: _program_counts(update=update, evaluate=measure),
        traced=on_mesh(lambda: update.trace(abstract, teachers, abstract_batch)),
    )


def jit_evaluate(evaluate: Evaluate, variables: Variables, mesh: Mesh) -> Callable[[Mapping[str, Any]], PyTree]:
    """Return `rows of this process -> metrics of the global batch` for a model that this run does not train.

    Args:
        evaluate: `(params, state, teachers, rows) -> metrics`.
        variables: of the model, already placed; evaluated as the student, without teachers.
        mesh: axes data, fsdp, tensor.
    """
    measure = jax.jit(evaluate, out_shardings=NamedSharding(mesh, PartitionSpec()))
    params, state = {"student": variables.params}, {"student": variables.state}
    return _on_mesh(lambda rows: measure(params, state, (), put_rows(rows, mesh)), mesh)


def _on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Return the function that runs under the ambient mesh, which `by_rows` reads during tracing."""

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Lay out this process's rows of a batch on the mesh."""
    by_rows = NamedSharding(mesh, ROWS)

    def put(x: np.ndarray | Array) -> Array:
        if jax.process_count() == 1:
            return jax.device_put(x, by_rows)
        total = _local_batches_per_global_batch(mesh) * x.shape[0]
        shard = functools.partial(local_shard, np.asarray(x), local_rows(mesh, total))
        return jax.make_array_from_callback((total, *x.shape[1:]), by_rows, shard)

    return jax.tree.map(put, tree)


def move_to_mesh(tree: PyTree, mesh: Mesh) -> PyTree:
    """Move arrays that are replicated on another mesh to this mesh, split by rows, without blocking.

    The arrays are read from one device: from several, `device_put` goes through the host unless source and target have
    the same shards (jax 0.12).
    """
    by_rows = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), by_rows), tree)


def local_shard(x: np.ndarray, row_numbers: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
    """Return one shard of the global batch from this process's rows.

    Args:
        x: `[rows, ...]`, the rows of this process.
        row_numbers: `[rows]`, their numbers in the global batch, in increasing order.
        index: the place of the shard in the global batch.
    """
    first = int(np.searchsorted(row_numbers, index[0].start or 0))
    length = len(row_numbers) if index[0].stop is None else index[0].stop - (index[0].start or 0)
    return x[first : first + length]


def _program_counts(**functions: Any) -> dict[str, int]:
    return {name: function._cache_size() for name, function in functions.items()}


@functools.cache
def _local_batches_per_global_batch(mesh: Mesh) -> int:
    """Return the size of a global batch divided by the rows of this process; 1 if every process has all rows."""
    shards = row_shards(mesh)
    return shards // len(local_rows(mesh, shards))
