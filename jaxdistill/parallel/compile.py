"""Compilation of steps: where they are jitted, their state donated, and everything laid out on the mesh.

`jit` over a mesh is the engine, `pmap` a thin second backend.
Both give an `Engine` with the same functions, and parameters that agree to float32 rounding.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.parallel.collectives import PMAP_AXIS, ROWS, psum
from jaxdistill.parallel.mesh import row_shards
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules, shardings
from jaxdistill.types import NOTHING, Array, PyTree, Step, TrainState, Variables

Batch = Mapping[str, Mapping[str, Any]]
Evaluate = Callable[[PyTree, PyTree, tuple[Variables, ...], Mapping[str, Array]], PyTree]


class Engine(NamedTuple):
    """A step compiled for its devices.

    init: `(key, batch, start) -> TrainState`, never whole on one device; `start` as of `Step.init`, and donated
    update: `(train_state, batch) -> (train_state, metrics)`; donates the train state
    evaluate: `(train_state, rows) -> metrics`, sums over the whole batch
    put: `batch of host arrays -> batch of device arrays`
    export: `train_state ->` the same as a tree of global arrays, for checkpoints and reports
    restore: inverse of `export`
    abstract: shapes and shardings of what `export` gives
    rows: the rows of the global batch that this process must supply
    compiled: `() -> {function: how many programs it was compiled into}`
    """

    init: Callable[[Array, Batch, Variables], TrainState]
    update: Callable[[TrainState, Batch], tuple[TrainState, PyTree]]
    evaluate: Callable[[TrainState, Mapping[str, Any]], PyTree]
    put: Callable[[PyTree], PyTree]
    export: Callable[[TrainState], TrainState]
    restore: Callable[[TrainState], TrainState]
    abstract: TrainState
    rows: Callable[[int], slice]
    compiled: Callable[[], dict[str, int]]


def _once() -> dict[str, int] | None:
    """Options for a program that runs once: XLA on CPU takes 6 s to optimise a ResNet's random draws, 1 s without."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def place(variables: Variables, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Variables:
    """Lays a model's variables out on the mesh by its rule table."""
    return jax.device_put(variables, shardings(variables, mesh, rules))


def local_rows(mesh: Mesh, total: int) -> slice:
    """The rows of a batch of `total` that live on this process's devices, as one range."""
    indices = NamedSharding(mesh, ROWS).addressable_devices_indices_map((total,))
    ranges = [index[0].indices(total) for index in indices.values() if index is not None]
    first, last = min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges)
    if sum(stop - start for start, stop, _ in set(ranges)) != last - first:
        raise ValueError(
            "the rows of this process's devices are not neighbours; choose mesh sizes that keep them together"
        )
    return slice(first, last)


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
    """`jit` over a mesh.

    Args:
        step: the algorithm.
        evaluate: `(params, state, teachers, rows) -> metrics`.
        mesh: axes data, fsdp, tensor.
        teachers: frozen variables, already placed. They are arguments of the compiled program: as a closure they
            would be constants in it, as large as they are.
        references: the teachers beside whom `evaluate` measures; a control has them, and learns from none.
        batch: shapes of a global batch, by stream.
        rules: layout of the train state.
    """
    rows, whole = NamedSharding(mesh, ROWS), NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(step.init, jax.random.key(0), teachers, batch, NOTHING)
    layout = shardings(shapes, mesh, rules)
    placed, beside = (jax.tree.map(lambda x: x.sharding, models) for models in (teachers, references))

    init = jax.jit(step.init, out_shardings=layout, compiler_options=_once(), donate_argnums=3)
    # out_shardings are pinned: left open, XLA re-sharded gradients and compiled twice
    update = jax.jit(step.update, in_shardings=(layout, placed, rows), out_shardings=(layout, whole), donate_argnums=0)
    measure = jax.jit(evaluate, in_shardings=(layout.params, layout.state, beside, rows), out_shardings=whole)

    on_mesh = lambda function: _on_mesh(function, mesh)

    return Engine(
        init=on_mesh(lambda key, batch, start=NOTHING: init(key, teachers, batch, start)),
        update=on_mesh(lambda ts, batch: update(ts, teachers, batch)),
        evaluate=on_mesh(lambda ts, batch: measure(ts.params, ts.state, references, batch)),
        put=lambda batch: put_rows(batch, mesh),
        export=lambda ts: ts,
        restore=lambda ts: ts,
        abstract=jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout),
        rows=lambda total: local_rows(mesh, total),
        compiled=lambda: _programs(update=update, evaluate=measure),
    )


def jit_evaluate(evaluate: Evaluate, variables: Variables, mesh: Mesh) -> Callable[[Mapping[str, Any]], PyTree]:
    """`rows of this process -> metrics of the whole batch`, for a model that is not trained here.

    Args:
        evaluate: `(params, state, teachers, rows) -> metrics`.
        variables: of the model, already placed; it is measured as the student, beside nobody.
        mesh: axes data, fsdp, tensor.
    """
    measure = jax.jit(evaluate, out_shardings=NamedSharding(mesh, PartitionSpec()))
    params, state = {"student": variables.params}, {"student": variables.state}
    return _on_mesh(lambda rows: measure(params, state, (), put_rows(rows, mesh)), mesh)


def _on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The function under the ambient mesh, which `by_rows` reads while it is traced."""

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Lays this process's rows of a batch out on the mesh."""
    rows = NamedSharding(mesh, ROWS)

    def each(x: np.ndarray) -> Array:
        if jax.process_count() == 1:
            return jax.device_put(x, rows)
        return jax.make_array_from_process_local_data(rows, x, (_shares(mesh) * x.shape[0], *x.shape[1:]))

    return jax.tree.map(each, tree)


def _programs(**functions: Any) -> dict[str, int]:
    return {name: function._cache_size() for name, function in functions.items()}


@functools.cache
def _shares(mesh: Mesh) -> int:
    """How many times this process's rows make a whole batch: 1 where every process holds all of them."""
    shards = row_shards(mesh)
    mine = local_rows(mesh, shards)
    return shards // (mine.stop - mine.start)


def pmap_engine(
    step: Step,
    evaluate: Evaluate,
    devices: Sequence[jax.Device],
    teachers: tuple[Variables, ...],
    references: tuple[Variables, ...],
    batch: Batch,
) -> Engine:
    """`pmap` over the rows of the batch: everything else is a copy on every device.

    Args:
        step, evaluate, teachers, references, batch: as for `jit_engine`.
        devices: of this process; pmap runs in one process here.
    """
    count = len(devices)
    shapes = jax.eval_shape(step.init, jax.random.key(0), teachers, batch, NOTHING)
    each = NamedSharding(Mesh(np.asarray(devices), (PMAP_AXIS,)), PartitionSpec(PMAP_AXIS))
    copies = jax.jit(
        lambda tree: jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree), out_shardings=each
    )
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    joined = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    split = lambda tree: jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), tree)

    init = jax.jit(step.init, compiler_options=_once(), donate_argnums=3)
    traced = {"update": 0, "evaluate": 0}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def trace(*args: Any) -> Any:  # once for each program; pmap itself tells no number
            traced[name] += 1
            return function(*args)

        return trace

    summed = lambda *args: psum(evaluate(*args))
    update = jax.pmap(counted("update", step.update), axis_name=PMAP_AXIS, donate_argnums=0, devices=devices)
    measure = jax.pmap(counted("evaluate", summed), axis_name=PMAP_AXIS, devices=devices)
    frozen = copies(teachers)
    beside = frozen if references is teachers else copies(references)

    def started(key: Array, batch: Batch, start: Variables = NOTHING) -> TrainState:
        return copies(init(key, teachers, joined(batch), start))

    def updated(ts: TrainState, batch: Batch) -> tuple[TrainState, PyTree]:
        ts, metrics = update(ts, frozen, batch)
        return ts, first(metrics)

    return Engine(
        init=started,
        update=updated,
        evaluate=lambda ts, batch: first(measure(ts.params, ts.state, beside, batch)),
        put=split,
        export=first,
        restore=copies,
        abstract=shapes,
        rows=lambda total: slice(0, total),
        compiled=lambda: dict(traced),
    )
