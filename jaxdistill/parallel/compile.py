"""Compilation of steps: where they are jitted, their state donated, and everything laid out on the mesh.

`jit` over a mesh is the engine, `pmap` a thin second backend, and `vmap` is for copies of a small model, one a seed.
All give an `Engine` with the same functions, and parameters that agree to float32 rounding.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.core.collectives import PMAP_AXIS, ROWS, psum
from jaxdistill.core.types import NO_VARIABLES, Array, PyTree, Step, TrainState, Variables
from jaxdistill.parallel.mesh import make_mesh, row_shards
from jaxdistill.parallel.sharding import DEFAULT_RULES, Rules, laid_out, shardings

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
    rows: `size of a global batch -> ` the numbers of the rows that this process must supply
    compiled: `() -> {function: how many programs it was compiled into}`
    traced: `() ->` the update as `jax.stages.Traced`, for shapes and shardings alone; None under pmap
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


def _once() -> dict[str, int] | None:
    """Options for a program that runs once: XLA on CPU takes 6 s to optimise a ResNet's random draws, 1 s without."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def place(variables: Variables, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Variables:
    """Lays a model's variables out on the mesh by its rule table."""
    return jax.device_put(variables, shardings(variables, mesh, rules))


def local_rows(mesh: Mesh, total: int) -> np.ndarray:
    """The rows of a batch of `total` that live on this process's devices, rising, `[rows]`.

    They need not be neighbours: on a TPU, a host's chips are a square, and the mesh winds through all of them.
    """
    return rows_on(mesh, total, set(mesh.local_devices))


def rows_on(mesh: Mesh, total: int, devices: Collection[jax.Device]) -> np.ndarray:
    """The rows of a batch of `total` that live on some of the mesh's devices, rising, `[rows]`."""
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
    shapes = jax.eval_shape(step.init, jax.random.key(0), teachers, batch, NO_VARIABLES)
    layout = shardings(shapes, mesh, rules)
    placed, beside = (jax.tree.map(lambda x: x.sharding, models) for models in (teachers, references))

    init = jax.jit(step.init, out_shardings=layout, compiler_options=_once(), donate_argnums=3)
    # out_shardings are pinned: left open, XLA re-sharded gradients and compiled twice
    update = jax.jit(step.update, in_shardings=(layout, placed, rows), out_shardings=(layout, whole), donate_argnums=0)
    measure = jax.jit(evaluate, in_shardings=(layout.params, layout.state, beside, rows), out_shardings=whole)

    on_mesh = lambda function: _on_mesh(function, mesh)
    abstract, given = laid_out(shapes, layout), jax.tree.map(lambda x: x.update(sharding=rows), batch)

    return Engine(
        init=on_mesh(lambda key, batch, start=NO_VARIABLES: init(key, teachers, batch, start)),
        update=on_mesh(lambda ts, batch: update(ts, teachers, batch)),
        evaluate=on_mesh(lambda ts, batch: measure(ts.params, ts.state, references, batch)),
        put=lambda batch: put_rows(batch, mesh),
        export=lambda ts: ts,
        restore=lambda ts: ts,
        abstract=abstract,
        rows=lambda total: local_rows(mesh, total),
        compiled=lambda: _programs(update=update, evaluate=measure),
        traced=on_mesh(lambda: update.trace(abstract, teachers, given)),
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
        total = _shares(mesh) * x.shape[0]
        shard = functools.partial(taken, x, local_rows(mesh, total))
        return jax.make_array_from_callback((total, *x.shape[1:]), rows, shard)

    return jax.tree.map(each, tree)


def moved(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays that are whole on every device of another mesh, laid out by rows on this one; nothing is waited for.

    Taken from one of those devices: from several, `device_put` goes through the host unless their pieces are the same
    ones (jax 0.12).
    """
    rows = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), rows), tree)


def taken(x: np.ndarray, mine: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
    """A piece of the global batch, given the rows `mine` of it: `index` is where the piece lies in the whole."""
    first = int(np.searchsorted(mine, index[0].start or 0))
    length = len(mine) if index[0].stop is None else index[0].stop - (index[0].start or 0)
    return x[first : first + length]


def _programs(**functions: Any) -> dict[str, int]:
    return {name: function._cache_size() for name, function in functions.items()}


@functools.cache
def _shares(mesh: Mesh) -> int:
    """How many times this process's rows make a whole batch: 1 where every process holds all of them."""
    shards = row_shards(mesh)
    return shards // len(local_rows(mesh, shards))


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
    shapes = jax.eval_shape(step.init, jax.random.key(0), teachers, batch, NO_VARIABLES)
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

    def started(key: Array, batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
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
        rows=np.arange,
        compiled=lambda: dict(traced),
    )


def vmap_engine(
    step: Step,
    evaluate: Evaluate,
    teachers: tuple[Variables, ...],
    references: tuple[Variables, ...],
    batch: Batch,
) -> Engine:
    """`vmap` over copies that differ by their seed, on one device: one program where each would have its own.

    State, training batches and metrics have a first axis, of the copies; `init` takes a key for each. Teachers, and
    the rows of an evaluation, are the same for all. `abstract` is of one copy.

    Args:
        step, evaluate, teachers, references, batch: as for `jit_engine`.
    """
    on_mesh = functools.partial(_on_mesh, mesh=make_mesh((1, 1, 1)))
    init = jax.jit(jax.vmap(step.init, (0, None, None, None)), compiler_options=_once())
    update = jax.jit(jax.vmap(step.update, (0, None, 0)), donate_argnums=0)
    measure = jax.jit(jax.vmap(evaluate, (0, 0, None, None)))
    return Engine(
        init=on_mesh(lambda keys, batch, start=NO_VARIABLES: init(keys, teachers, batch, start)),
        update=on_mesh(lambda ts, batch: update(ts, teachers, batch)),
        evaluate=on_mesh(lambda ts, batch: measure(ts.params, ts.state, references, batch)),
        put=jax.device_put,
        export=lambda ts: ts,
        restore=lambda ts: ts,
        abstract=jax.eval_shape(step.init, jax.random.key(0), teachers, batch, NO_VARIABLES),
        rows=np.arange,
        compiled=lambda: _programs(update=update, evaluate=measure),
    )
