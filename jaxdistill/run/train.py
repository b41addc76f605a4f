"""The training loop of one stage of a run: of a teacher, the student or the control.

It starts from the newest good checkpoint or from initial values, and writes evaluations and checkpoints.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jaxdistill.core.checkpoint import Checkpoints
from jaxdistill.core.errors import Stopped
from jaxdistill.core.interfaces import Fusion, Model
from jaxdistill.core.streams import stream_id
from jaxdistill.core.types import NO_VARIABLES, Shapes, TrainState, Variables
from jaxdistill.data.pipeline import TEST, Pipeline
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Phases, StoredFields, evaluation_batches, train_stream
from jaxdistill.evaluation.evaluator import evaluator, scores, totals, with_evolving_teachers
from jaxdistill.parallel.compile import Engine, jit_engine
from jaxdistill.parallel.pmap import pmap_engine
from jaxdistill.run.log import Log
from jaxdistill.run.preemption import Preemption
from jaxdistill.run.stages import Stage
from jaxdistill.run.subset import choose_records
from jaxdistill.teachers.submesh import QueryPrefetcher
from jaxdistill.teachers.teacher import Query, Teacher


class Data(NamedTuple):
    """The records (examples) of one training, opened for reading, and the teacher outputs for them.

    Outputs are given by stream, a named source of batches such as "train"; for test records, under the key `TEST`.

    records: training records, by stream
    test: test records
    stored: teacher outputs that are read from a cache, by stream
    queries: functions `batch -> batch with teacher outputs`, for teachers on separate devices, by stream
    chosen: numbers of the records of "train" that are trained on, or one array for each phase (part of the training
        with its own records), or None for all records
    """

    records: Mapping[str, Records]
    test: Records
    stored: Mapping[str, tuple[StoredFields, ...]] = MappingProxyType({})
    queries: Mapping[str, Query] = MappingProxyType({})
    chosen: np.ndarray | Phases | None = None


def open_data(data: Pipeline, teachers: Iterable[Teacher]) -> Data:
    """Open the records (examples) of a run and its cached teacher outputs, and choose the training records."""
    records = {name: data.open(stream) for name, stream in data.streams.items()}
    outputs = {name: [teacher.stored(name) for teacher in teachers] for name in data.with_test}
    stored = {name: tuple(each for each in of_stream if each is not None) for name, of_stream in outputs.items()}
    return Data(records, data.open(data.test), stored, {}, choose_records(data, records["train"]))


class References(NamedTuple):
    """The teachers that evaluation compares a model with.

    models: networks of the teachers; for a teacher that is cached or on separate devices, a model that reads the
        teacher's outputs from the batch
    fusion: combines the outputs of these models into the outputs of one; has no parameters
    """

    models: tuple[Model, ...]
    fusion: Fusion


class StageContext(NamedTuple):
    """The inputs that the training loop of one model gets from the run.

    data: records (examples) opened for reading, and teacher outputs for them
    mesh: the student's device mesh, on which every model of the run is trained
    references: the teachers that evaluation compares the model with
    console: where progress is printed
    preemption: reports whether SIGTERM or Ctrl-C has asked the run to stop
    start: function `(shapes of the variables) -> variables` from which the model starts; if None, it starts from its
        pretrained weights, if it has any
    run: random name of the run, which its checkpoints keep
    """

    data: Data
    mesh: Mesh
    references: References
    console: Console
    preemption: Preemption
    start: Callable[[Variables], Variables] | None = None
    run: str = ""


class Trained(NamedTuple):
    """The result of the training of one model.

    variables: parameters and state of the trained model
    total: metrics of the last evaluation by name, as sums over the test examples; `scores(total)` computes the values
    compiled: number of programs that were compiled for "update" (the training step) and for "evaluate"
    seconds: time that the training has taken, over all processes that worked on it, up to their last checkpoints
    log: the last line of the log about training steps
    teachers: variables of the teachers if the training algorithm changes teachers too; otherwise empty
    """

    variables: Variables
    total: dict[str, Any]
    compiled: dict[str, int]
    seconds: float
    log: dict[str, Any]
    teachers: tuple[Variables, ...] = ()


def train(stage: Stage, folder: Path, teachers: tuple[Variables, ...], context: StageContext) -> Trained:
    """Train one model, from the newest good checkpoint in its folder, or else from initial values.

    Args:
        stage: the model to train, with its data, objective and training algorithm.
        folder: where checkpoints and logs are written.
        teachers: variables of all teachers of the run, already sharded over the mesh. Evaluation compares the model
            with these teachers; the model is trained with them only if `stage` has teachers.
        context: records (examples), mesh, teachers for comparison, and console of the run.

    Raises:
        NonFiniteError: a metric, such as a loss, became NaN or infinite; earlier checkpoints are intact.
        Stopped: the training was stopped by SIGTERM or Ctrl-C; the state is saved.
        CheckpointError: the folder has checkpoints, but none can be used.
    """
    place, bucket = folder / "checkpoints", stage.settings.bucket
    with Checkpoints(place, context.console.print, stage.name, bucket, context.run) as checkpoints:
        return _train(stage, folder, teachers, context, checkpoints)


def _train(
    stage: Stage, folder: Path, teachers: tuple[Variables, ...], context: StageContext, checkpoints: Checkpoints
) -> Trained:
    name, settings, algorithm, console = stage.name, stage.settings, stage.parts.step, context.console
    start = time.perf_counter()
    engine = make_engine(stage, teachers, context.mesh, context.references)
    streams = open_streams(stage, context.data, engine)

    restored, step, earlier = checkpoints.restore(engine.abstract), 0, 0.0
    if restored is not None:
        earlier = restored.seconds
        step, ts = restored.step, engine.restore(restored.tree)
        for stream, state in restored.data.items():
            streams[stream].set_state(state)
        console.print(f"{name:>12}  resumed at step {step}")
    else:
        zeros = engine.put(zero_batch(stage.shapes, algorithm.streams, engine))
        shapes = Variables(engine.abstract.params["student"], engine.abstract.state["student"])
        values = context.start(shapes) if context.start else pretrained_values(stage.parts.student, shapes)
        ts = engine.init(jax.random.key(settings.seed), zeros, values)

    total: dict[str, Any] = {}
    schedules = stage.parts.components.schedules
    with Log(folder, name, step, settings.steps, settings.logging, schedules, console, context.run) as log:
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
                seconds = earlier + time.perf_counter() - start
                checkpoints.save(step, engine.export(ts), position, scores(total) if due else {}, seconds)
            if stop and step < settings.steps:
                raise Stopped(f"{name}: saved at step {step} of {settings.steps}")
    checkpoints.wait()
    total = total or measure(engine, ts, stage, context.data)
    exported = engine.export(ts)
    evolved = algorithm.evolve_teachers(exported.params, exported.state, teachers) if algorithm.evolve_teachers else ()
    variables, seconds = Variables(exported.params["student"], exported.state["student"]), time.perf_counter() - start
    return Trained(variables, total, engine.compiled(), earlier + seconds, log.last, evolved)


def pretrained_values(student: Model, abstract: Variables) -> Variables:
    """Load the pretrained weights from which a student starts; return no variables if the student is not pretrained.

    Args:
        student: the model.
        abstract: shapes and shardings of its variables, which tell where each weight is placed.
    """
    if student.load is None:
        return NO_VARIABLES
    return student.load(abstract).read()


def advance(engine: Engine, ts: TrainState, streams: Mapping[str, Any], log: Log, step: int, every: int) -> TrainState:
    """Fetch a batch, dispatch one training step, hand the step's metrics to the log, and return the new train state.

    Args:
        engine: the compiled training step.
        ts: the train state, which is donated.
        streams: iterators of batches, by name of the source of batches, such as "train".
        log: the log; metrics stay on the device until the log is flushed.
        step: number of steps that are already done.
        every: number of steps between two flushes of the log.
    """
    log.trace(step)
    ts, metrics = engine.update(ts, engine.put({stream: next(batches) for stream, batches in streams.items()}))
    log.add(step + 1, metrics)
    if (step + 1) % every == 0:
        log.flush(keep=1)
    return ts


def open_streams(stage: Stage, data: Data, engine: Engine) -> dict[str, Any]:
    """Open an endless, resumable iterator for each stream (named source of batches) that the training algorithm reads.

    Args:
        stage: the training of one model, with the settings of its streams.
        data: records (examples) opened for reading, and teacher outputs for them.
        engine: the compiled training step; its `row_numbers` gives the examples of a batch that this process supplies.

    Returns:
        The iterators, by name of the stream.
    """
    streams = {}
    for name in sorted(stage.parts.step.streams):
        stream = stage.data.streams[name]
        batches = train_stream(
            data.records[name],
            batch_size=stream.batch_size,
            seed=stage.settings.seed + stream_id(name),
            transforms=stream.transforms,
            rows=engine.row_numbers(stream.batch_size),
            stored=data.stored.get(name, ()),
            chosen=data.chosen if name == "train" else None,
        )
        streams[name] = QueryPrefetcher(batches, data.queries[name]) if name in data.queries else batches
    return streams


def make_engine(stage: Stage, teachers: tuple[Variables, ...], mesh: Mesh, references: References) -> Engine:
    """Make the training step and the evaluation of one model; both are compiled when they are first called.

    Args:
        stage: the model to train, with its objective and training algorithm.
        teachers: variables of the teachers in `references`, already sharded over the mesh; if empty, evaluation
            compares the model with no teacher.
        mesh: the student's device mesh.
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
    """Make a batch of zeros with the shapes of this process's part of a batch; parameters are initialised from it.

    Args:
        shapes: shapes of the global batch, by stream (named source of batches) and field.
        streams: names of the streams to include.
        engine: the compiled training step; its `row_numbers` gives the examples of a batch that this process supplies.
    """

    def zeros(x: Any) -> np.ndarray:
        return np.zeros((len(engine.row_numbers(x.shape[0])), *x.shape[1:]), x.dtype)

    return {stream: {name: zeros(x) for name, x in shapes[stream].items()} for stream in streams}


def measure(engine: Engine, ts: TrainState, stage: Stage, data: Data) -> dict[str, Any]:
    """Evaluate a model on all test records (examples), and return the metrics by name, as sums over the records.

    Of the transforms of training batches, those without randomness are applied to the test records.

    Args:
        engine: the compiled evaluation.
        ts: the train state with the model's parameters.
        stage: the training of the model, with the settings of the evaluation.
        data: records opened for reading, and teacher outputs for them.
    """
    size = stage.settings.evaluate_rows
    rows, stored, query = engine.row_numbers(size), data.stored.get(TEST, ()), data.queries.get(TEST, dict)
    transforms = stage.data.streams["train"].transforms
    batches = evaluation_batches(data.test, batch_size=size, rows=rows, transforms=transforms, stored=stored)
    return totals(jax.device_get(engine.evaluate(ts, engine.put(query(batch)))) for batch in batches)
