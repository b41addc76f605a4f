"""Compile a training step with `pmap`, the second backend: one process, and only the batch is split over devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdistill.core.collectives import PMAP_AXIS
from jaxdistill.core.interfaces import Step
from jaxdistill.core.sums import over_devices
from jaxdistill.core.types import NO_VARIABLES, Array, PyTree, TrainState, Variables
from jaxdistill.parallel.compile import Batch, Engine, Evaluate, init_compiler_options


def pmap_engine(
    step: Step,
    evaluate: Evaluate,
    devices: Sequence[jax.Device],
    teachers: tuple[Variables, ...],
    references: tuple[Variables, ...],
    batch: Batch,
) -> Engine:
    """Build an `Engine`: compile a training step and the student's evaluation with `pmap`.

    Every device holds all parameters and a part of the batch.

    Args:
        step: the training algorithm, with the functions `init` and `update`.
        evaluate: the evaluation of the student, `(params, state, references, rows of one stream) -> metrics`.
        devices: the devices to use, all of one process.
        teachers: the variables of the frozen teachers that the step trains with.
        references: the variables of the teachers that `evaluate` compares the student with.
        batch: the shapes of a global batch, `{stream: {field: jax.ShapeDtypeStruct}}`. A stream is a named source of
            examples.
    """
    count = len(devices)
    shapes = jax.eval_shape(step.init, jax.random.key(0), teachers, batch, NO_VARIABLES)
    one_per_device = NamedSharding(Mesh(np.asarray(devices), (PMAP_AXIS,)), PartitionSpec(PMAP_AXIS))
    replicate = jax.jit(
        lambda tree: jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree), out_shardings=one_per_device
    )
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    merge_devices = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    split_rows = lambda tree: jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), tree)

    init = jax.jit(step.init, compiler_options=init_compiler_options(), donate_argnums=3)
    traces = {"update": 0, "evaluate": 0}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def trace(*args: Any) -> Any:  # called once per compiled program; pmap itself has no counter
            traces[name] += 1
            return function(*args)

        return trace

    evaluate_all = lambda *args: over_devices(evaluate(*args))
    update = jax.pmap(counted("update", step.update), axis_name=PMAP_AXIS, donate_argnums=0, devices=devices)
    measure = jax.pmap(counted("evaluate", evaluate_all), axis_name=PMAP_AXIS, devices=devices)
    frozen_teachers = replicate(teachers)
    frozen_references = frozen_teachers if references is teachers else replicate(references)

    def first_state(key: Array, batch: Batch, start: Variables = NO_VARIABLES) -> TrainState:
        return replicate(init(key, teachers, merge_devices(batch), start))

    def next_state(ts: TrainState, batch: Batch) -> tuple[TrainState, PyTree]:
        ts, metrics = update(ts, frozen_teachers, batch)
        return ts, first(metrics)

    return Engine(
        init=first_state,
        update=next_state,
        evaluate=lambda ts, batch: first(measure(ts.params, ts.state, frozen_references, batch)),
        put=split_rows,
        export=first,
        restore=replicate,
        abstract=shapes,
        row_numbers=np.arange,
        compiled=lambda: dict(traces),
    )
