"""The loop: one model trained to the end, from the newest good checkpoint on, measured and saved on the way."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxdistill.apart import Ahead, Ask
from jaxdistill.build import Parts
from jaxdistill.checkpoint import Checkpoints
from jaxdistill.data.records import Records
from jaxdistill.data.stream import Beside, Phases, Transform, evaluation_batches, train_stream
from jaxdistill.evaluate import beside_grown, evaluator, scores, totals
from jaxdistill.interrupts import Interrupts, Stopped
from jaxdistill.log import Log
from jaxdistill.parallel.compile import Engine, jit_engine, pmap_engine, vmap_engine
from jaxdistill.parallel.sharding import DEFAULT_RULES
from jaxdistill.steps.observe import stream_number
from jaxdistill.types import NOTHING, Model, TrainState, Variables


class Data(NamedTuple):
    """What a run reads.

    streams: records to learn from, by stream; `train` is one of them
    test: records to be judged on
    shapes: of the global batch, by stream
    beside: what cached teachers said of these records, by stream; of the test records under "test"
    chosen: the numbers of the records of `train` that are learned from, or phases of them; None: all
    apart: whom to ask about a batch, by stream; teachers on devices of their own
    """

    streams: Mapping[str, Records]
    test: Records
    shapes: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]
    beside: Mapping[str, tuple[Beside, ...]] = MappingProxyType({})
    chosen: np.ndarray | Phases | None = None
    apart: Mapping[str, Ask] = MappingProxyType({})


class Around(NamedTuple):
    """What a stage shares with the other stages of its run.

    data: records
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
    teachers: as they have become, where the step makes them; else none
    """

    variables: Variables
    total: dict[str, Any]
    compiled: dict[str, int]
    teachers: tuple[Variables, ...] = ()


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
    engine = make_engine(config, plan, teachers, around)
    checkpoints = Checkpoints(folder / "checkpoints", best="accuracy", report=console.print)
    streams = open_streams(config, plan, data, engine)

    step = checkpoints.latest() or 0
    if step:
        ts, position = checkpoints.restore(step, engine.abstract)
        ts = engine.restore(ts)
        for stream, state in position.items():
            streams[stream].set_state(state)
        console.print(f"{name:>12}  resumed at step {step}")
    else:
        zeros = engine.put(blank(data.shapes, plan.step.streams, engine))
        ts = engine.init(jax.random.key(config.seed), zeros, start(plan.student, engine.abstract))

    total: dict[str, Any] = {}
    with checkpoints, Log(folder, name, step, config.steps, config.logging, plan.schedules, console) as log:
        while step < config.steps:
            ts = advance(engine, ts, streams, log, step, config.logging.every)
            step += 1
            stop = around.interrupts.stop()
            due = step % config.evaluate.every == 0 or step == config.steps
            if due or stop:
                log.flush()  # a state whose loss is not finite is never saved
                if due:
                    total = measure(engine, ts, data, config.evaluate.batch_size, plan.transforms["train"])
                    log.evaluation(step, scores(total))
                position = {stream: iterator.get_state() for stream, iterator in streams.items()}
                checkpoints.save(step, engine.export(ts), position, scores(total) if due else {})
            if stop and step < config.steps:
                raise Stopped(f"{name}: saved at step {step} of {config.steps}")
    total = total or measure(engine, ts, data, config.evaluate.batch_size, plan.transforms["train"])
    exported = engine.export(ts)
    made = plan.step.grown(exported.params, exported.state, teachers) if plan.step.grown else ()
    return Trained(Variables(exported.params["student"], exported.state["student"]), total, engine.compiled(), made)


def start(student: Model, abstract: TrainState) -> Variables:
    """What a checkpoint of the world gives the student to begin with."""
    if student.load is None:
        return NOTHING
    return student.load(Variables(abstract.params["student"], abstract.state["student"])).read()


def advance(engine: Engine, ts: TrainState, streams: Mapping[str, Any], log: Log, step: int, every: int) -> TrainState:
    """One turn of the loop: a batch fetched, a step dispatched, its metrics kept on the device for `every` steps."""
    log.trace(step)
    ts, metrics = engine.update(ts, engine.put({stream: next(batches) for stream, batches in streams.items()}))
    log.add(step + 1, metrics)
    if (step + 1) % every == 0:
        log.flush(keep=1)
    return ts


def open_streams(config: ConfigDict, plan: Parts, data: Data, engine: Engine) -> dict[str, Any]:
    """An endless, resumable iterator for each stream that the step reads."""
    streams = {}
    for stream in sorted(plan.step.streams):
        size = data.shapes[stream]["mask"].shape[0]
        draw = {"batch_size": size, "seed": config.seed + stream_number(stream), "transforms": plan.transforms[stream]}
        draw |= {"beside": data.beside.get(stream, ()), "chosen": data.chosen if stream == "train" else None}
        batches = train_stream(data.streams[stream], **draw, rows=engine.rows(size))
        streams[stream] = Ahead(batches, data.apart[stream]) if stream in data.apart else batches
    return streams


def make_engine(
    config: ConfigDict, plan: Parts, teachers: tuple[Variables, ...], around: Around, copies: bool = False
) -> Engine:
    """The step and the evaluation of a stage, compiled for the config's backend, or for copies, when first called."""
    beside = around.reference.teachers if teachers else ()
    evaluate = evaluator(plan.student, beside, around.reference.reference, config.evaluate.layers)
    evaluate = beside_grown(evaluate, plan.step.grown) if plan.step.grown else evaluate
    learning = teachers if config.teachers else ()
    batch = {stream: around.data.shapes[stream] for stream in plan.step.streams}
    if copies:
        return vmap_engine(plan.step, evaluate, learning, teachers, batch)
    if config.mesh.backend == "pmap":
        return pmap_engine(plan.step, evaluate, list(around.mesh.devices.flat), learning, teachers, batch)
    rules = config.student.rules or DEFAULT_RULES
    return jit_engine(plan.step, evaluate, around.mesh, learning, teachers, batch, rules=rules)


def blank(shapes: Mapping[str, Any], streams: Iterable[str], engine: Engine) -> dict[str, dict[str, np.ndarray]]:
    """A batch of zeros, this process's rows of it: enough to initialise from."""

    def each(x: Any) -> np.ndarray:
        return np.zeros((len(engine.rows(x.shape[0])), *x.shape[1:]), x.dtype)

    return {stream: {name: each(x) for name, x in shapes[stream].items()} for stream in streams}


def measure(
    engine: Engine, ts: TrainState, data: Data, size: int, transforms: Sequence[Transform] = ()
) -> dict[str, Any]:
    """The metrics of all test records, as sums; of the transforms, those that draw nothing are applied here too."""
    rows, said, ask = engine.rows(size), data.beside.get("test", ()), data.apart.get("test", dict)
    batches = evaluation_batches(data.test, batch_size=size, rows=rows, transforms=transforms, beside=said)
    return totals(jax.device_get(engine.evaluate(ts, engine.put(ask(rows)))) for rows in batches)
