"""Measure the speed and accuracy of a cached teacher: python -m experiments.benchmarks.cache [--rounds 5] [--seeds 3]

On digits, a transformer of six layers teaches one of a single layer. The student's forward pass costs less than a
quarter of the teacher's; a much cheaper student would gain more from the cache. Time: epochs with the live teacher and
with its cache, in turns in one process, as the ratio of the medians. Accuracy: students trained from caches in
float32, in float16, and with the largest 3 of 10 classes and the mass of the rest.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxdistill
from experiments.benchmarks.measured import timed
from jaxdistill.core.types import NO_VARIABLES, Variables
from jaxdistill.run import distill, train
from jaxdistill.run.commands import cache
from jaxdistill.run.config import differ, make
from jaxdistill.teachers.load import load

BATCH, RATE = 128, "cosine(start=0.002, warmup=0.1)"
VIT = "vit(patch=7, width=96, heads=4, classes=10, depth={})"
TEACHER, STUDENT = VIT.format(6), VIT.format(1)
KEPT = {"float32": "", "float16": ", dtype='float16'", "top 3 + tail": ", top=3, dtype='float16'"}
QUIET = Console(quiet=True)


def base_config(**differences):
    """Make the config that all runs share."""
    common = {"batch_size": BATCH, "rate": RATE, "control": False, "data": {"name": "mnist5k"}}
    return make(**common | differences)


def student_config(taught: Path, kept: str = "", **differences):
    """Make the config of a student.

    Args:
        taught: the folder of the trained teacher.
        kept: the spec of its cache; empty: a live teacher.
        differences: further changes of the config.
    """
    entry = {"model": TEACHER, "checkpoint": str(taught), "cache": kept}
    terms = {"kd": {"term": "kd(temperature=4.0)"}}
    return base_config(student={"model": STUDENT}, teachers={"vit": entry}, objective=terms, **differences)


def forward(model, values: Variables, batch) -> Callable[[], None]:
    """Make a function that runs the forward pass of a teacher or student."""
    call = jax.jit(lambda v, b: model.apply(*v, b, train=False, key=jax.random.key(0))[0].dense().logits)
    return lambda: jax.block_until_ready(call(values, batch))


class Loop:
    """A training loop that advances by one epoch at a time, without evaluation."""

    def __init__(self, config, folder: Path):
        resolved = distill.check_config(config, folder)
        stage, (teacher,) = resolved.student, resolved.teachers.values()
        self.parts, records = stage.parts, resolved.data.open(resolved.data.streams["train"])
        stored = [student_config for student_config in (teacher.stored("train"),) if student_config]
        data = train.Data({"train": records}, records, {"train": tuple(stored)})
        self.teacher = load(teacher, stage.shapes["train"]) if teacher.runs else NO_VARIABLES
        references = train.References((teacher.model,), resolved.reference)
        self.engine = train.make_engine(stage, (teacher.argument(self.teacher),), resolved.mesh, references)
        self.streams = train.open_streams(stage, data, self.engine)
        self.steps = len(records) // BATCH
        self.batch = self.next()
        self.ts = self.engine.init(jax.random.key(0), self.batch)
        self.epoch()  # compiles

    def next(self):
        return self.engine.put({name: next(stream) for name, stream in self.streams.items()})

    def epoch(self) -> None:
        for _ in range(self.steps):
            self.ts, metrics = self.engine.update(self.ts, self.next())
        jax.block_until_ready((self.ts, metrics))


def speed(taught: Path, home: Path, rounds: int) -> dict[str, float]:
    """Time the forward passes of teacher and student, and an epoch with the live teacher and with its cache."""
    kept = student_config(taught, f"outputs(folder={str(home / 'float32')!r})")
    cache.write(kept, QUIET)
    live, read = Loop(student_config(taught), home / "live"), Loop(kept, home / "read")
    batch = live.batch["train"]
    student = Variables(live.ts.params["student"], live.ts.state["student"])
    passes = {
        "teacher": forward(live.parts.teachers[0].model, live.teacher, batch),
        "student": forward(live.parts.student, jax.tree.map(np.asarray, student), batch),
    }
    timed(passes, 1)  # compiles
    return timed(passes, 10 * rounds) | timed({"live": live.epoch, "cached": read.epoch}, rounds)


def accuracies(taught: Path, home: Path, steps: int, seeds: int) -> dict[str, list[float]]:
    """Train students from each cache, and return their final accuracy in % by seed."""
    by_cache: dict[str, list[float]] = {}
    for number, (name, options) in enumerate(KEPT.items()):
        config = student_config(taught, f"outputs(folder={str(home / f'kept-{number}')!r}{options})", steps=steps)
        config = differ(config, evaluate={"every": steps, "batch_size": 500, "layers": ()})
        cache.write(config, QUIET)
        by_cache[name] = []
        for seed in range(seeds):
            rows = jaxdistill.distill(differ(config, seed=seed), home / f"{number}-{seed}", QUIET).rows
            by_cache[name].append(100 * rows[-1]["accuracy"])
    return by_cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/cache-benchmark", type=Path, help="finished runs stay")
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--seeds", default=3, type=int, help="number of students for each cache; 0: measure time only")
    parser.add_argument("--steps", default=400, type=int, help="training steps of the teacher and of the students")
    args = parser.parse_args()
    home, console = args.workdir, Console()
    teacher_config = base_config(student={"model": TEACHER}, objective={"cross_entropy": {}}, steps=args.steps)
    jaxdistill.distill(teacher_config, home / "teacher", QUIET)
    seconds = speed(home / "teacher", home, args.rounds)
    ms = {name: 1000 * value for name, value in seconds.items()}
    costs, faster = seconds["teacher"] / seconds["student"], seconds["live"] / seconds["cached"]
    console.print(f"forward: teacher {ms['teacher']:.1f} ms, student {ms['student']:.1f} ms, ratio {costs:.2f}")
    console.print(f"epoch: live {ms['live']:.0f} ms, cached {ms['cached']:.0f} ms, {faster:.2f} times faster")
    accuracy_by_cache = accuracies(home / "teacher", home, args.steps, args.seeds) if args.seeds else {}
    table = Table("cache", "accuracy %", "beside float32", "each seed")
    for name, values in accuracy_by_cache.items():
        difference = np.mean(values) - np.mean(accuracy_by_cache["float32"])
        table.add_row(
            name, f"{np.mean(values):.2f}", f"{difference:+.2f}", ", ".join(f"{value:.1f}" for value in values)
        )
    console.print(table)
    (home / "cache.json").write_text(json.dumps({"seconds": seconds, "accuracy": accuracy_by_cache}, indent=1))


if __name__ == "__main__":
    main()
