"""The loop: one model trained to the end, from the newest good checkpoint on, evaluated and saved on the way."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jaxdistill.core.checkpoint import Checkpoints
from jaxdistill.core.types import NO_VARIABLES, Fusion, Model, Shapes, TrainState, Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Beside, Phases, evaluation_batches, stream_number, train_stream
from jaxdistill.evaluation.evaluator import beside_evolving, evaluator, scores, totals
from jaxdistill.parallel.compile import Engine, jit_engine, pmap_engine
from jaxdistill.run.log import Log
from jaxdistill.run.preemption import Preemption, Stopped
from jaxdistill.run.stages import Stage
from jaxdistill.teachers.submesh import Ahead
from jaxdistill.teachers.teacher import Query


class Data(NamedTuple):
    """The open records of a stage.

    records: to learn from, by stream; `train` is one of them
    test: to be evaluated on
    stored: outputs of cached teachers for these records, by stream; for the test records under `TEST`
    queries: what teachers outside the student's step are asked, by stream; each adds their outputs to a batch
    chosen: the numbers of the records of `train` that are learned from, or phases of them; None: all
    """

    records: Mapping[str, Records]
    test: Records
    stored: Mapping[str, tuple[Beside, ...]] = MappingProxyType({})
    queries: Mapping[str, Query] = MappingProxyType({})
    chosen: np.ndarray | Phases | None = None


class References(NamedTuple):
    """The teachers that a student is measured beside.

    models: as a step applies them
    fusion: how they become one, without parameters
    """

    models: tuple[Model, ...]
    fusion: Fusion


class StageContext(NamedTuple):
    """What a stage shares with the other stages of its run.

    data: open records
    mesh: of the student's devices
    references: the teachers that it is measured beside
    console: to draw on
    preemption: whether to stop
    """

    data: Data
    mesh: Mesh
    references: References
    console: Console
    preemption: Preemption


class Trained(NamedTuple):
    """The result of a stage.

    variables: of the model
    total: the metrics of the last evaluation, as sums
    compiled: how many programs each function was compiled into
    teachers: as they have become, where the step changes them; else none
    """

    variables: Variables
    total: dict[str, Any]
    compiled: dict[str, int]
    teachers: tuple[Variables, ...] = ()


def train(stage: Stage, folder: Path, teachers: tuple[Variables, ...], context: StageContext) -> Trained:
    """Trains the model of a stage.

    Args:
        stage: to be trained.
        folder: for its checkpoints and logs.
        teachers: their variables, laid out on the mesh. The model learns from them if its stage has teachers, and is
            measured beside them anyway.
        context: what it shares with the other stages.

    Raises:
        NonFiniteError: a loss or gradient became NaN or infinite; what was saved before is whole.
        Stopped: SIGTERM or Ctrl-C; the state is saved.
        CheckpointError: there are checkpoints, and none can be used.
    """
    name, settings, step_, console = stage.name, stage.settings, stage.parts.step, context.console
    engine = make_engine(stage, teachers, context.mesh, context.references)
    checkpoints = Checkpoints(folder / "checkpoints", best="accuracy", report=console.print)
    streams = open_streams(stage, context.data, engine)

    step = checkpoints.latest() or 0
    if step:
        ts, position = checkpoints.restore(step, engine.abstract)
        ts = engine.restore(ts)
        for stream, state in position.items():
            streams[stream].set_state(state)
        console.print(f"{name:>12}  resumed at step {step}")
    else:
        zeros = engine.put(blank(stage.shapes, step_.streams, engine))
        ts = engine.init(jax.random.key(settings.seed), zeros, start(stage.parts.student, engine.abstract))

    total: dict[str, Any] = {}
    schedules = stage.parts.named.schedules
    with checkpoints, Log(folder, name, step, settings.steps, settings.logging, schedules, console) as log:
        while step < settings.steps:
            ts = advance(engine, ts, streams, log, step, settings.logging.every)
            step += 1
            stop = context.preemption.stop()
            due = step % settings.evaluate_every == 0 or step == settings.steps
            if due or stop:
                log.flush()  # a state whose loss is not finite is never saved
                if due:
                    total = measure(engine, ts, stage, context.data)
                    log.evaluation(step, scores(total))
                position = {stream: iterator.get_state() for stream, iterator in streams.items()}
                checkpoints.save(step, engine.export(ts), position, scores(total) if due else {})
            if stop and step < settings.steps:
                raise Stopped(f"{name}: saved at step {step} of {settings.steps}")
    total = total or measure(engine, ts, stage, context.data)
    exported = engine.export(ts)
    evolved = step_.evolve_teachers(exported.params, exported.state, teachers) if step_.evolve_teachers else ()
    return Trained(Variables(exported.params["student"], exported.state["student"]), total, engine.compiled(), evolved)


def start(student: Model, abstract: TrainState) -> Variables:
    """The values of a pretrained student's checkpoint, to begin with; none for any other."""
    if student.load is None:
        return NO_VARIABLES
    return student.load(Variables(abstract.params["student"], abstract.state["student"])).read()


def advance(engine: Engine, ts: TrainState, streams: Mapping[str, Any], log: Log, step: int, every: int) -> TrainState:
    """Takes one turn of the loop: fetches a batch and dispatches a step, whose metrics stay on the device meanwhile."""
    log.trace(step)
    ts, metrics = engine.update(ts, engine.put({stream: next(batches) for stream, batches in streams.items()}))
    log.add(step + 1, metrics)
    if (step + 1) % every == 0:
        log.flush(keep=1)
    return ts


def open_streams(stage: Stage, data: Data, engine: Engine) -> dict[str, Any]:
    """Opens an endless, resumable iterator for each stream that the step reads."""
    streams = {}
    for name in sorted(stage.parts.step.streams):
        stream = stage.data.streams[name]
        batches = train_stream(
            data.records[name],
            batch_size=stream.batch_size,
            seed=stage.settings.seed + stream_number(name),
            transforms=stream.transforms,
            rows=engine.rows(stream.batch_size),
            beside=data.stored.get(name, ()),
            chosen=data.chosen if name == "train" else None,
        )
        streams[name] = Ahead(batches, data.queries[name]) if name in data.queries else batches
    return streams


def make_engine(stage: Stage, teachers: tuple[Variables, ...], mesh: Mesh, references: References) -> Engine:
    """Makes the step and the evaluation of a stage, which are compiled when first called.

    Args:
        stage: whose step it is.
        teachers: variables of the references, placed; none if they are not measured beside it.
        mesh: of the student's devices.
        references: the teachers that it is measured beside.
    """
    settings, step = stage.settings, stage.parts.step
    evaluate = evaluator(stage.parts.student, references.models if teachers else (), references.fusion, settings.layers)
    evaluate = beside_evolving(evaluate, step.evolve_teachers) if step.evolve_teachers else evaluate
    learning = teachers if stage.parts.teachers else ()
    batch = {stream: stage.shapes[stream] for stream in step.streams}
    if settings.backend == "pmap":
        return pmap_engine(step, evaluate, list(mesh.devices.flat), learning, teachers, batch)
    return jit_engine(step, evaluate, mesh, learning, teachers, batch, rules=settings.rules)


def blank(shapes: Mapping[str, Shapes], streams: Iterable[str], engine: Engine) -> dict[str, dict[str, np.ndarray]]:
    """A batch of zeros, this process's rows of it: enough to initialise from."""

    def each(x: Any) -> np.ndarray:
        return np.zeros((len(engine.rows(x.shape[0])), *x.shape[1:]), x.dtype)

    return {stream: {name: each(x) for name, x in shapes[stream].items()} for stream in streams}


def measure(engine: Engine, ts: TrainState, stage: Stage, data: Data) -> dict[str, Any]:
    """The metrics of all test records, as sums; of the transforms, those that draw nothing are applied here too."""
    size = stage.settings.evaluate_rows
    rows, stored, query = engine.rows(size), data.stored.get(TEST, ()), data.queries.get(TEST, dict)
    transforms = stage.data.streams["train"].transforms
    batches = evaluation_batches(data.test, batch_size=size, rows=rows, transforms=transforms, beside=stored)
    return totals(jax.device_get(engine.evaluate(ts, engine.put(query(batch)))) for batch in batches)
