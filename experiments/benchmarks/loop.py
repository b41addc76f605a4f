"""Time the training loop: python -m experiments.benchmarks.loop [--rounds 5]

Times the quickstart's student in the whole loop (data, transfer, logging), and its bare jitted step on one fixed batch,
in turns in one process. Prints the ratio of the medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
from rich.console import Console

from jaxdistill.run import distill, train
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.log import Log
from jaxdistill.teachers.load import initialise

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default=7, type=int)
    parser.add_argument("--steps", default=100, type=int)
    args = parser.parse_args()
    console = Console(quiet=True)
    config = differ(load_config(str(QUICKSTART)), control=False)
    with tempfile.TemporaryDirectory() as folder:
        resolved = distill.check_config(config, folder)
        stage, teachers = resolved.student, tuple(resolved.teachers.values())
        records = resolved.data.open(resolved.data.streams["train"])
        values = tuple(initialise(teacher, stage.shapes["train"]) for teacher in teachers)
        references = train.References(tuple(teacher.model for teacher in teachers), resolved.reference)
        engine = train.make_engine(stage, values, resolved.mesh, references)
        streams = train.open_streams(stage, train.Data({"train": records}, records), engine)
        batch = engine.put({name: next(stream) for name, stream in streams.items()})
        ts = engine.init(jax.random.key(0), batch)
        ts, metrics = engine.update(ts, batch)
        jax.block_until_ready(metrics)

        bare, loop, step = [], [], 0
        schedules = stage.parts.components.schedules
        with Log(Path(folder), "bench", 0, 10**9, stage.settings.logging, schedules, console) as log:
            for _ in range(args.rounds):
                start = time.perf_counter()
                for _ in range(args.steps):
                    ts, metrics = engine.update(ts, batch)
                jax.block_until_ready(metrics)
                bare.append((time.perf_counter() - start) / args.steps)
                start = time.perf_counter()
                for _ in range(args.steps):
                    ts = train.advance(engine, ts, streams, log, step, config.logging.every)
                    step += 1
                jax.block_until_ready(ts)
                loop.append((time.perf_counter() - start) / args.steps)
                log.flush()
    bare_ms, loop_ms = 1000 * statistics.median(bare), 1000 * statistics.median(loop)
    print(f"bare jitted step {bare_ms:.2f} ms, whole loop {loop_ms:.2f} ms, ratio {loop_ms / bare_ms:.3f}")
    print(f"rounds: bare {[round(1000 * x, 2) for x in bare]}, loop {[round(1000 * x, 2) for x in loop]}")


if __name__ == "__main__":
    main()
