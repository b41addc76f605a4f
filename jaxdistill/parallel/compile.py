"""Compile the training step and the evaluation with `jit`, and lay out their arrays on the device mesh.

`jit` over a mesh is the main backend. `pmap` (`pmap.py`) is a second one that splits only the batch. Both return an
`Engine` with the same functions, and train parameters that agree to float32 rounding.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.core.collectives import ROWS
from jaxdistill.core.interfaces import Step
from jaxdistill.core.types import NO_VARIABLES, Array, PyTree, TrainState, Variables
from jaxdistill.parallel.mesh import row_shard_count
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules, shardings, with_shardings

Batch = Mapping[str, Mapping[str, Any]]
Evaluate = Callable[[PyTree, PyTree, tuple[Variables, ...], Mapping[str, Array]], PyTree]


class Engine(NamedTuple):
    """The compiled functions that train and evaluate one student on the devices of a run.

    A batch is `{stream: {field: array}}`; a stream is a named source of examples. A row is one example of a batch.

    init: `(key, batch, start) -> TrainState`. With `jit`, each array is created in its shards, never whole on one
        device. `start` has pretrained values that replace the random initial ones (see `StepInit`); it is donated
    update: `(train_state, batch) -> (new train_state, metrics)`, one training step; donates the train state
    evaluate: `(train_state, rows of one stream on the devices) -> metrics`, summed over the global batch
    put: `(this process's rows as host arrays) -> global batch as device arrays`
    export: `(train_state) -> the same tree as global arrays`, for checkpoints and reports
    restore: `(exported tree) -> train_state`, the inverse of `export`
    abstract: the exported train state as `jax.ShapeDtypeStruct`; with `jit`, with shardings
    row_numbers: `(number of rows of a global batch) -> indices of the rows that this process must load`
    compiled: `() -> {"update" or "evaluate": number of programs compiled so far}`
    traced: `() -> jax.stages.Traced` of the update, from shapes and shardings without arrays; None with `pmap`
    """

    init: Callable[[Array, Batch, Variables], TrainState]
    update: Callable[[TrainState, Batch], tuple[TrainState, PyTree]]
    evaluate: Callable[[TrainState, Mapping[str, Any]], PyTree]
    put: Callable[[PyTree], PyTree]
    export: Callable[[TrainState], TrainState]
    restore: Callable[[TrainState], TrainState]
    abstract: TrainState
    row_numbers: Callable[[int], np.ndarray]
    compiled: Callable[[], dict[str, int]]
    traced: Callable[[], jax.stages.Traced] | None = None


def init_compiler_options() -> dict[str, int] | None:
    """Return the XLA compiler options for the initialisation of a model, as a dict; None means XLA's defaults.

    An initialisation runs once, so on CPU it is compiled without optimisation: for a ResNet in 1 s instead of 6 s.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def shard_variables(variables: PyTree, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """Move a model's parameters and state to a device mesh, sharded by rules for the array names; see `spec_for`."""
    return jax.device_put(variables, shardings(variables, mesh, rules))


def local_row_numbers(mesh: Mesh, total: int) -> np.ndarray:
    """Return the indices of the batch rows (examples) on the devices of this process, in increasing order, `[rows]`.

    The indices need not be adjacent. On a TPU, the chips of a host form a square, and the mesh winds through all chips.

    Args:
        mesh: the mesh that the batch is split over.
        total: the number of rows of the global batch.
    """
    return row_numbers_on(mesh, total, set(mesh.local_devices))


def row_numbers_on(mesh: Mesh, total: int, devices: Collection[jax.Device]) -> np.ndarray:
    """Return the indices of the batch rows (examples) on the given devices, in increasing order, `[rows]`.

    Args:
        mesh: the mesh that the batch is split over.
        total: the number of rows of the global batch.
        devices: some devices of the mesh.
    """
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
    """Build an `Engine`: compile a training step and the student's evaluation with `jit` over a device mesh.

    Args:
        step: the training algorithm, with the functions `init` and `update`.
        evaluate: the evaluation of the student, `(params, state, references, rows of one stream) -> metrics`.
        mesh: a mesh with the axes `data`, `fsdp` and `tensor`.
        teachers: the variables of the frozen teachers that the step trains with, already sharded over `mesh`. They are
            arguments of the compiled program; as constants from a closure they would be copied into the program.
        references: the variables of the teachers that `evaluate` compares the student with. They are the same as
            `teachers`, except for a control (the same student trained without a teacher): it has references, but no
            teachers.
        batch: the shapes of a global batch, `{stream: {field: jax.ShapeDtypeStruct}}`. A stream is a named source of
            examples.
        rules: the sharding rules for the arrays of the train state.
    """
    by_rows, replicated = NamedSharding(mesh, ROWS), NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(step.init, jax.random.key(0), teachers, batch, NO_VARIABLES)
    layout = shardings(shapes, mesh, rules)
    layout_of = lambda models: jax.tree.map(lambda x: x.sharding, models)

    init = jax.jit(step.init, out_shardings=layout, compiler_options=init_compiler_options(), donate_argnums=3)
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
        row_numbers=lambda total: local_row_numbers(mesh, total),
        compiled=lambda: _program_counts(update=update, evaluate=measure),
        traced=on_mesh(lambda: update.trace(abstract, teachers, abstract_batch)),
    )


def jit_evaluate(evaluate: Evaluate, variables: Variables, mesh: Mesh) -> Callable[[Mapping[str, Any]], PyTree]:
    """Compile the evaluation of a model whose variables do not change, such as a teacher.

    Args:
        evaluate: `(params, state, teachers, rows) -> metrics`. It is called with the model in the place of the
            student, under the key "student" of `params` and `state`, and without teachers.
        variables: the model's variables, already sharded over `mesh`.
        mesh: a mesh with the axes `data`, `fsdp` and `tensor`.

    Returns:
        `(this process's rows as host arrays) -> metrics of the global batch`; a row is one example.
    """
    measure = jax.jit(evaluate, out_shardings=NamedSharding(mesh, PartitionSpec()))
    params, state = {"student": variables.params}, {"student": variables.state}
    return _on_mesh(lambda rows: measure(params, state, (), put_rows(rows, mesh)), mesh)


def _on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Wrap a function so that it runs with `mesh` as JAX's ambient mesh (`jax.set_mesh`), which tracing reads."""

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Move this process's rows (examples) of a batch to the devices, as global arrays that are split by rows.

    Args:
        tree: host arrays `[rows of this process, ...]`.
        mesh: the mesh to split the rows over.
    """
    by_rows = NamedSharding(mesh, ROWS)

    def put(x: np.ndarray | Array) -> Array:
        if jax.process_count() == 1:
            return jax.device_put(x, by_rows)
        total = _local_batches_per_global_batch(mesh) * x.shape[0]
        shard = functools.partial(local_shard, np.asarray(x), local_row_numbers(mesh, total))
        return jax.make_array_from_callback((total, *x.shape[1:]), by_rows, shard)

    return jax.tree.map(put, tree)


def move_to_mesh(tree: PyTree, mesh: Mesh) -> PyTree:
    """Move arrays that are replicated on another mesh to `mesh`, split along the first dimension, without blocking.

    Each array is copied from one device of the other mesh. (From several devices, `device_put` would copy through the
    host, unless source and target have the same shards; jax 0.12.)
    """
    by_rows = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), by_rows), tree)


def local_shard(x: np.ndarray, row_numbers: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
    """Return one device's shard of a global array, cut out of the rows that this process holds.

    Args:
        x: `[rows, ...]`, the rows of the global array that this process holds.
        row_numbers: `[rows]`, the index of each of these rows in the global array, in increasing order.
        index: the slices of the global array that make up the shard; only the first dimension is split.
    """
    first = int(np.searchsorted(row_numbers, index[0].start or 0))
    length = len(row_numbers) if index[0].stop is None else index[0].stop - (index[0].start or 0)
    return x[first : first + length]


def _program_counts(**functions: Any) -> dict[str, int]:
    return {name: function._cache_size() for name, function in functions.items()}


@functools.cache
def _local_batches_per_global_batch(mesh: Mesh) -> int:
    """Return the size of a global batch as a multiple of this process's part; 1 if this process holds all rows."""
    shards = row_shard_count(mesh)
    return shards // len(local_row_numbers(mesh, shards))


def keep_programs(folder: str) -> None:
    """Store compiled programs in a folder (JAX's persistent compilation cache), so that later runs can reuse them.

    Args:
        folder: the folder; if it is empty, the settings of JAX stay as they are.
    """
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        compilation_cache.reset_cache()  # JAX reads the setting only when it opens its cache, at the first compilation
