"""What does the loop cost? python -m experiments.benchmarks.loop [--rounds 5]

Times the quickstart's student by the whole loop (data, transfer, logging) and by its bare jitted step on one batch that
never changes, in turns in one process, and prints the ratio of the medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxdistill.core.types import Variables
from jaxdistill.data import pipeline
from jaxdistill.data.datasets import open_records
from jaxdistill.parallel.compile import place
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.run import distill, train
from jaxdistill.run.config import differ, load
from jaxdistill.run.log import Log
from jaxdistill.run.preemption import Interrupts

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", default=7, type=int)
    words.add_argument("--steps", default=100, type=int)
    known = words.parse_args()
    console = Console(quiet=True)
    config = differ(load(str(QUICKSTART)), control=False)
    with tempfile.TemporaryDirectory() as folder:
        planned = distill.check(config, folder)
        _, plan = planned.stages[-1]
        mesh = make_mesh(planned.mesh_shape)
        records = open_records(config.data.name, "train", pipeline.data_folder(config), "data", "train")
        shapes = pipeline.batch_shapes(config, planned.described)
        data = train.Data({"train": records}, records, shapes)
        zeros = {name: np.zeros(x.shape, x.dtype) for name, x in shapes["train"].items()}
        values = [Variables(*jax.jit(teacher.init)(jax.random.key(0), zeros)) for teacher in plan.teachers]
        teachers = tuple(place(value, mesh) for value in values)
        engine = train.make_engine(config, plan, teachers, train.Around(data, mesh, plan, console, Interrupts()))
        streams = train.open_streams(config, plan, data, engine)
        batch = engine.put({name: next(stream) for name, stream in streams.items()})
        ts = engine.init(jax.random.key(0), batch)
        ts, metrics = engine.update(ts, batch)
        jax.block_until_ready(metrics)

        bare, loop, step = [], [], 0
        with Log(Path(folder), "bench", 0, 10**9, config.logging, plan.schedules, console) as log:
            for _ in range(known.rounds):
                start = time.perf_counter()
                for _ in range(known.steps):
                    ts, metrics = engine.update(ts, batch)
                jax.block_until_ready(metrics)
                bare.append((time.perf_counter() - start) / known.steps)
                start = time.perf_counter()
                for _ in range(known.steps):
                    ts = train.advance(engine, ts, streams, log, step, config.logging.every)
                    step += 1
                jax.block_until_ready(ts)
                loop.append((time.perf_counter() - start) / known.steps)
                log.flush()
    bare_ms, loop_ms = 1000 * statistics.median(bare), 1000 * statistics.median(loop)
    print(f"bare jitted step {bare_ms:.2f} ms, whole loop {loop_ms:.2f} ms, ratio {loop_ms / bare_ms:.3f}")
    print(f"rounds: bare {[round(1000 * x, 2) for x in bare]}, loop {[round(1000 * x, 2) for x in loop]}")


if __name__ == "__main__":
    main()
