"""The training loop: train the model of one stage from its newest good checkpoint, with evaluations and checkpoints."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jaxdistill.core.checkpoint import Checkpoints
from jaxdistill.core.interfaces import Fusion, Model
from jaxdistill.core.types import NO_VARIABLES, Shapes, TrainState, Variables
from jaxdistill.data.pipeline import TEST
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Phases, StoredFields, evaluation_batches, stream_id, train_stream
from jaxdistill.evaluation.evaluator import evaluator, scores, totals, with_evolving_teachers
from jaxdistill.parallel.compile import Engine, jit_engine
from jaxdistill.parallel.pmap import pmap_engine
from jaxdistill.run.log import Log
from jaxdistill.run.preemption import Preemption, Stopped
from jaxdistill.run.stages import Stage
from jaxdistill.teachers.submesh import QueryPrefetcher
from jaxdistill.teachers.teacher import Query


class Data(NamedTuple):
    """The open records of a stage.

    records: training records, by stream; one stream is `train`
    test: test records
    stored: outputs of cached teachers for these records, by stream; those for the test records under `TEST`
    queries: functions that add the outputs of sub-mesh teachers to a batch, by stream
    chosen: indices of the records of `train` that are trained on, or phases of indices; None: all
    """

    records: Mapping[str, Records]
    test: Records
    stored: Mapping[str, tuple[StoredFields, ...]] = MappingProxyType({})
    queries: Mapping[str, Query] = MappingProxyType({})
    chosen: np.ndarray | Phases | None = None


class References(NamedTuple):
    """The teachers that evaluation compares a model with.

    models: the models that a step applies
    fusion: combines their outputs; has no parameters
    """

    models: tuple[Model, ...]
    fusion: Fusion


class StageContext(NamedTuple):
    """The values that all stages of a run share.

    data: open records
    mesh: the student's mesh
    references: the teachers that evaluation compares a model with
    console: where progress is printed
    preemption: tells when to stop
    """

    data: Data
    mesh: Mesh
    references: References
    console: Console
    preemption: Preemption


class Trained(NamedTuple):
    """The result of a stage.

    variables: variables of the trained model
    total: metrics of the last evaluation, as sums
    compiled: number of compiled programs, by function
    teachers: variables of the teachers, if the step trains them; else empty
    """

    variables: Variables
    total: dict[str, Any]
    compiled: dict[str, int]
    teachers: tuple[Variables, ...] = ()


def train(stage: Stage, folder: Path, teachers: tuple[Variables, ...], context: StageContext) -> Trained:
    """Train the model of a stage.

    Args:
        stage: the stage to train.
        folder: where checkpoints and logs are written.
        teachers: variables of the teachers, placed on the mesh. They are passed to the step if the stage has teachers,
            and to the evaluation in any case.
        context: values that all stages share.

    Raises:
        NonFiniteError: a loss or gradient became NaN or infinite; earlier checkpoints are intact.
        Stopped: SIGTERM or Ctrl-C; the state is saved.
        CheckpointError: there are checkpoints, but none can be used.
    """
    name, settings, algorithm, console = stage.name, stage.settings, stage.parts.step, context.console
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
        zeros = engine.put(zero_batch(stage.shapes, algorithm.streams, engine))
        ts = engine.init(jax.random.key(settings.seed), zeros, pretrained_values(stage.parts.student, engine.abstract))

    total: dict[str, Any] = {}
    schedules = stage.parts.components.schedules
    with checkpoints, Log(folder, name, step, settings.steps, settings.logging, schedules, console) as log:
        while step < settings.steps:
            ts = advance(engine, ts, streams, log, step, settings.logging.every)
            step += 1
            stop = context.preemption.should_stop()
            due = step % settings.evaluate_every == 0 or step == settings.steps
            if due or stop:
                log.flush()  # raises before a state with a loss that is not finite is saved
                if due:
                    total = measure(engine, ts, stage, context.data)
                    log.evaluation(step, scores(total))
                position = {stream: iterator.get_state() for stream, iterator in streams.items()}
                checkpoints.save(step, engine.export(ts), position, scores(total) if due else {})
            if stop and step < settings.steps:
                raise Stopped(f"{name}: saved at step {step} of {settings.steps}")
    total = total or measure(engine, ts, stage, context.data)
    exported = engine.export(ts)
    evolved = algorithm.evolve_teachers(exported.params, exported.state, teachers) if algorithm.evolve_teachers else ()
    return Trained(Variables(exported.params["student"], exported.state["student"]), total, engine.compiled(), evolved)


def pretrained_values(student: Model, abstract: TrainState) -> Variables:
    """Load the initial values of a pretrained student; return no values for any other student."""
    if student.load is None:
        return NO_VARIABLES
    return student.load(Variables(abstract.params["student"], abstract.state["student"])).read()


def advance(engine: Engine, ts: TrainState, streams: Mapping[str, Any], log: Log, step: int, every: int) -> TrainState:
    """Fetch a batch, dispatch a step, and add its metrics, still on the device, to the log."""
    log.trace(step)
    ts, metrics = engine.update(ts, engine.put({stream: next(batches) for stream, batches in streams.items()}))
    log.add(step + 1, metrics)
    if (step + 1) % every == 0:
        log.flush(keep=1)
    return ts


def open_streams(stage: Stage, data: Data, engine: Engine) -> dict[str, Any]:
    """Open an endless, resumable iterator of batches for each stream that the step reads."""
    streams = {}
    for name in sorted(stage.parts.step.streams):
        stream = stage.data.streams[name]
        batches = train_stream(
            data.records[name],
            batch_size=stream.batch_size,
            seed=stage.settings.seed + stream_id(name),
            transforms=stream.transforms,
            rows=engine.rows(stream.batch_size),
            stored=data.stored.get(name, ()),
            chosen=data.chosen if name == "train" else None,
        )
        streams[name] = QueryPrefetcher(batches, data.queries[name]) if name in data.queries else batches
    return streams


def make_engine(stage: Stage, teachers: tuple[Variables, ...], mesh: Mesh, references: References) -> Engine:
    """Make the training step and the evaluation of a stage, which are compiled at the first call.

    Args:
        stage: the stage.
        teachers: variables of the references, placed on the mesh; empty: evaluate without teachers.
        mesh: the student's mesh.
        references: the teachers that evaluation compares the model with.
    """
    settings, step = stage.settings, stage.parts.step
    evaluate = evaluator(stage.parts.student, references.models if teachers else (), references.fusion, settings.layers)
    evaluate = with_evolving_teachers(evaluate, step.evolve_teachers) if step.evolve_teachers else evaluate
    step_teachers = teachers if stage.parts.teachers else ()
    batch = {stream: stage.shapes[stream] for stream in step.streams}
    if settings.backend == "pmap":
        return pmap_engine(step, evaluate, list(mesh.devices.flat), step_teachers, teachers, batch)
    return jit_engine(step, evaluate, mesh, step_teachers, teachers, batch, rules=settings.rules)


def zero_batch(
    shapes: Mapping[str, Shapes], streams: Iterable[str], engine: Engine
) -> dict[str, dict[str, np.ndarray]]:
    """Make a batch of zeros, with the rows of this process, to initialise parameters from."""

    def zeros(x: Any) -> np.ndarray:
        return np.zeros((len(engine.rows(x.shape[0])), *x.shape[1:]), x.dtype)

    return {stream: {name: zeros(x) for name, x in shapes[stream].items()} for stream in streams}


def measure(engine: Engine, ts: TrainState, stage: Stage, data: Data) -> dict[str, Any]:
    """Evaluate all test records and return the metrics as sums; transforms without randomness are applied."""
    size = stage.settings.evaluate_rows
    rows, stored, query = engine.rows(size), data.stored.get(TEST, ()), data.queries.get(TEST, dict)
    transforms = stage.data.streams["train"].transforms
    batches = evaluation_batches(data.test, batch_size=size, rows=rows, transforms=transforms, stored=stored)
    return totals(jax.device_get(engine.evaluate(ts, engine.put(query(batch)))) for batch in batches)
