"""Seeds of an arm as one program: what each leaves in its folder is what it would leave alone.

State and batches of all seeds have a further axis, over which the step is mapped: small models that leave a device idle
train in little more than the time of one. Every seed keeps its own order of records, log, checkpoints and results.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.study import Run
from jaxdistill import run as runs
from jaxdistill import selected, workfolder
from jaxdistill.build import Parts, Stage
from jaxdistill.checkpoint import Checkpoints, manifests, write_json
from jaxdistill.evaluate import scores
from jaxdistill.interrupts import Interrupts, Stopped
from jaxdistill.log import Log
from jaxdistill.parallel.compile import Engine
from jaxdistill.provenance import provenance
from jaxdistill.train import Around, Trained, blank, make_engine, measure, open_streams, start
from jaxdistill.types import PyTree, TrainState, Variables


class Seed(NamedTuple):
    """One of them, opened.

    folder: its own
    record: what its files say of where they come from
    models: its teachers, and what it trains
    stage, plan: the student's
    around: data and interrupts
    checkpoints, log, streams: its own
    """

    folder: Path
    record: Mapping[str, Any]
    models: runs.Run
    stage: Stage
    plan: Parts
    around: Around
    checkpoints: Checkpoints


def possible(each: Run) -> bool:
    """Whether runs like this one can go together: on one device, from a start of their own, teachers there before."""
    planned = runs.check(each.config, each.folder)
    (first, plan), *more = planned.stages
    one = planned.mesh_shape == (1, 1, 1) and first.config.mesh.backend == "jit"
    return one and not more and not planned.apart and not plan.step.grown and plan.student.load is None


def learn(each: Sequence[Run], console: Console) -> None:
    """Trains runs that differ by their seed alone, each from where it stopped; they must be `possible`.

    Raises:
        NonFiniteError: of one of them. All are saved as they were before; alone, the others go on.
        Stopped: SIGTERM or Ctrl-C; all are saved.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        seeds = [_opened(run, stack, interrupts) for run in each]
        first = seeds[0]
        engine = make_engine(first.stage.config, first.plan, first.models.placed(), first.around, copies=True)
        ts, total = _trained(engine, seeds, stack)
        for number, seed in enumerate(seeds):
            own, found = of(ts, number), of(total, number)
            variables = Variables(own.params["student"], own.state["student"])
            spent = (time.perf_counter() - began) / len(seeds)
            outcome = seed.models.keep(
                "student", seed.plan.student, Trained(variables, found, engine.compiled()), spent
            )
            write_json(seed.stage.folder / "result.json", {**outcome, "step": seed.stage.config.steps})
            row = seed.models.finish(seed.folder, seed.record, [seed.stage]).rows[-1]
            console.print(
                f"{each[number].arm}, seed {each[number].seed}: {100 * row['accuracy']:.2f} %", highlight=False
            )


def of(tree: PyTree, number: int) -> PyTree:
    """One copy of them."""
    return jax.tree.map(lambda x: x[number], tree)


def _opened(run: Run, stack: ExitStack, interrupts: Interrupts) -> Seed:
    quiet = Console(quiet=True)
    planned = runs.check(run.config, run.folder)
    ((stage, plan),) = planned.stages
    stack.enter_context(workfolder.held(run.folder))
    record = {"config": run.config.to_dict(), "provenance": provenance(run.config.seed)}
    record |= workfolder.claim(run.folder, record, "")
    models = runs.Run(run.config, planned, quiet)
    selected.hold(run.folder, run.config, models.data.chosen)
    models.teachers_from_checkpoints()
    checkpoints = stack.enter_context(Checkpoints(stage.folder / "checkpoints", best="accuracy"))
    return Seed(run.folder, record, models, stage, plan, models.around(stage, interrupts), checkpoints)


def _trained(engine: Engine, seeds: Sequence[Seed], stack: ExitStack) -> tuple[TrainState, dict[str, Any]]:
    """All of them at the end, and their metrics as sums."""
    config, plan, around = seeds[0].stage.config, seeds[0].plan, seeds[0].around
    streams = [open_streams(seed.stage.config, seed.plan, seed.around.data, engine) for seed in seeds]
    ts, step = _begun(engine, seeds, streams)
    words = (step, config.steps, config.logging, plan.schedules, Console(quiet=True))
    logs = [stack.enter_context(Log(seed.stage.folder, "student", *words)) for seed in seeds]
    judged = lambda ts: measure(engine, ts, around.data, config.evaluate.batch_size, plan.transforms["train"])
    total: dict[str, Any] = {}
    pending: list[tuple[int, Any]] = []
    while step < config.steps:
        rows = [{name: next(batches) for name, batches in own.items()} for own in streams]
        ts, metrics = engine.update(ts, engine.put(jax.tree.map(lambda *x: np.stack(x), *rows)))
        step += 1
        pending.append((step, metrics))
        stop = around.interrupts.stop()
        due = step % config.evaluate.every == 0 or step == config.steps
        if step % config.logging.every == 0:  # as in `train.advance`
            _tell(logs, pending[:-1])
            pending = pending[-1:]
        if due or stop:
            _tell(logs, pending)
            pending = []
        if due:
            total = judged(ts)
        for number, (seed, log, own) in enumerate(zip(seeds, logs, streams, strict=True)):
            found = scores(of(total, number)) if due else {}
            if due:
                log.evaluation(step, found)
            if due or stop:
                position = {name: batches.get_state() for name, batches in own.items()}
                seed.checkpoints.save(step, of(ts, number), position, found)
        if stop and step < config.steps:
            raise Stopped(f"{len(seeds)} students: saved at step {step} of {config.steps}")
    if around.interrupts.asked:  # a study of many runs must not go on
        raise Stopped(f"{len(seeds)} students are trained; only their tables and pages are missing")
    return ts, total or judged(ts)


def _begun(engine: Engine, seeds: Sequence[Seed], streams: Sequence[Mapping[str, Any]]) -> tuple[TrainState, int]:
    """Where all of them were last, or the start; the positions of their records too."""
    for seed in seeds:
        seed.checkpoints.latest()  # says what is damaged, and that nothing is left
    kept = set.intersection(*({0, *manifests(seed.checkpoints.folder)} for seed in seeds))
    if step := max(kept):
        found = [seed.checkpoints.restore(step, engine.abstract) for seed in seeds]
        for own, (_, position) in zip(streams, found, strict=True):
            for name, state in position.items():
                own[name].set_state(state)
        return jax.tree.map(lambda *x: jnp.stack(x), *(tree for tree, _ in found)), step
    plan, shapes = seeds[0].plan, seeds[0].around.data.shapes
    keys = jax.vmap(jax.random.key)(jnp.asarray([seed.stage.config.seed for seed in seeds]))
    zeros = engine.put(blank(shapes, plan.step.streams, engine))
    return engine.init(keys, zeros, start(plan.student, engine.abstract)), 0


def _tell(logs: Sequence[Log], ready: Sequence[tuple[int, Any]]) -> None:
    read = jax.device_get(ready)
    for number, log in enumerate(logs):
        for step, metrics in read:
            log.add(step, of(metrics, number))
        log.flush()
