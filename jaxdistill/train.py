"""The loop: one model trained to the end, from the newest good checkpoint on, measured and saved on the way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxdistill.build import Parts
from jaxdistill.checkpoint import Checkpoints
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Transform, evaluation_batches, train_stream
from jaxdistill.evaluate import evaluator, scores, totals
from jaxdistill.interrupts import Interrupts, Stopped
from jaxdistill.log import Log
from jaxdistill.parallel.compile import Engine, jit_engine, pmap_engine
from jaxdistill.parallel.sharding import DEFAULT_RULES
from jaxdistill.types import TrainState, Variables


class Data(NamedTuple):
    """What a run reads.

    train, test: records
    transforms: augmentation of training batches
    shapes: of a global training batch
    """

    train: Records
    test: Records
    transforms: tuple[Transform, ...]
    shapes: Mapping[str, jax.ShapeDtypeStruct]


class Around(NamedTuple):
    """What a stage shares with the other stages of its run.

    data: records and transforms
    mesh: of devices
    reference: the student's parts, which know how the teachers are fused
    console: to draw on
    interrupts: whether to stop
    """

    data: Data
    mesh: Mesh
    reference: Parts
    console: Console
    interrupts: Interrupts


class Trained(NamedTuple):
    """What training gives back.

    variables: of the model
    total: the metrics of the last evaluation, as sums
    compiled: how many programs each function was compiled into
    """

    variables: Variables
    total: dict[str, Any]
    compiled: dict[str, int]


def train(
    name: str, folder: Path, config: ConfigDict, plan: Parts, teachers: tuple[Variables, ...], around: Around
) -> Trained:
    """Trains the student of a config.

    Args:
        name: of the stage, for the log.
        folder: for its checkpoints and logs.
        config: the stage's.
        plan: its parts.
        teachers: their variables, laid out on the mesh. It learns from them if its config names teachers, and is
            measured beside them anyway.
        around: what it shares with the other stages.

    Raises:
        NonFiniteError: a loss or gradient became NaN or infinite; what was saved before is whole.
        Stopped: SIGTERM or Ctrl-C; the state is saved.
        CheckpointError: there are checkpoints, and none can be used.
    """
    data, console = around.data, around.console
    engine = _engine(config, plan, teachers, around)
    checkpoints = Checkpoints(folder / "checkpoints", best="accuracy", report=console.print)
    draw = {"batch_size": config.batch_size, "seed": config.seed, "transforms": data.transforms}
    stream = train_stream(data.train, **draw, rows=engine.rows(config.batch_size))

    step = checkpoints.latest() or 0
    if step:
        ts, position = checkpoints.restore(step, engine.abstract)
        ts = engine.restore(ts)
        stream.set_state(position)
        console.print(f"{name:>12}  resumed at step {step}")
    else:
        zeros = {key: np.zeros((config.batch_size, *x.shape[1:]), x.dtype) for key, x in data.shapes.items()}
        ts = engine.init(jax.random.key(config.seed), engine.put({"train": _rows(zeros, engine, config.batch_size)}))

    total: dict[str, Any] = {}
    with checkpoints, Log(folder, name, step, config.steps, config.logging, plan.schedules, console) as log:
        while step < config.steps:
            log.trace(step)
            ts, metrics = engine.update(ts, engine.put({"train": next(stream)}))
            step += 1
            log.add(step, metrics)
            if step % config.logging.every == 0:
                log.flush(keep=1)
            stop = around.interrupts.stop(step)
            if stop or step % config.evaluate.every == 0 or step == config.steps:
                log.flush()  # a state whose loss is not finite is never saved
                total = measure(engine, ts, data.test, config.evaluate.batch_size)
                log.evaluation(step, scores(total))
                checkpoints.save(step, engine.export(ts), stream.get_state(), scores(total))
            if stop and step < config.steps:
                raise Stopped(f"{name}: saved at step {step} of {config.steps}")
    total = total or measure(engine, ts, data.test, config.evaluate.batch_size)
    exported = engine.export(ts)
    return Trained(Variables(exported.params["student"], exported.state["student"]), total, engine.compiled())


def _engine(config: ConfigDict, plan: Parts, teachers: tuple[Variables, ...], around: Around) -> Engine:
    beside = around.reference.teachers if teachers else ()
    evaluate = evaluator(plan.student, beside, around.reference.objective, config.evaluate.layers)
    learning = teachers if config.teachers else ()
    batch = {"train": around.data.shapes}
    if config.mesh.backend == "pmap":
        return pmap_engine(plan.step, evaluate, list(around.mesh.devices.flat), learning, teachers, batch)
    rules = config.student.rules or DEFAULT_RULES
    return jit_engine(plan.step, evaluate, around.mesh, learning, teachers, batch, rules=rules)


def _rows(batch: Mapping[str, np.ndarray], engine: Engine, size: int) -> dict[str, np.ndarray]:
    return {name: x[engine.rows(size)] for name, x in batch.items()}


def measure(engine: Engine, ts: TrainState, test: Records, size: int) -> dict[str, Any]:
    """The metrics of all test records, as sums."""
    batches = evaluation_batches(test, batch_size=size, rows=engine.rows(size))
    return totals(jax.device_get(engine.evaluate(ts, engine.put(rows))) for rows in batches)
