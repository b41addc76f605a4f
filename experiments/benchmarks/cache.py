"""What is a cached teacher worth? python -m experiments.benchmarks.cache [--rounds 5] [--seeds 3]

On digits, a transformer of six layers teaches one of a single layer, whose forward pass costs less than a quarter of
its own, and not much less, or the cache would be worth more. Time: epochs beside the living teacher and from its
cache, in turns in one process; the ratio of the medians. Accuracy: students trained from caches in float32, in float16,
and of the largest 3 of 10 classes with the mass of the rest.
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


def digits(**differences):
    """What all runs have in common."""
    common = {"batch_size": BATCH, "rate": RATE, "control": False, "data": {"name": "mnist5k"}}
    return make(**common | differences)


def beside(taught: Path, kept: str = "", **differences):
    """A student of the teacher that lies in a folder; `kept` is the spec of its cache."""
    entry = {"model": TEACHER, "checkpoint": str(taught), "cache": kept}
    terms = {"kd": {"term": "kd(temperature=4.0)"}}
    return digits(student={"model": STUDENT}, teachers={"vit": entry}, objective=terms, **differences)


def forward(model, values: Variables, batch) -> Callable[[], None]:
    """A teacher's or student's forward pass."""
    call = jax.jit(lambda v, b: model.apply(*v, b, train=False, key=jax.random.key(0))[0].dense().logits)
    return lambda: jax.block_until_ready(call(values, batch))


class Loop:
    """A run of the loop that is advanced an epoch at a time, without evaluation."""

    def __init__(self, config, folder: Path):
        resolved = distill.check(config, folder)
        stage, (teacher,) = resolved.student, resolved.teachers.values()
        self.parts, records = stage.parts, resolved.data.open(resolved.data.streams["train"])
        stored = [beside for beside in (teacher.stored("train"),) if beside]
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
    """Seconds of a forward pass of teacher and student, and of an epoch beside the living teacher and its cache."""
    kept = beside(taught, f"outputs(folder={str(home / 'float32')!r})")
    cache.write(kept, QUIET)
    live, read = Loop(beside(taught), home / "live"), Loop(kept, home / "read")
    batch = live.batch["train"]
    student = Variables(live.ts.params["student"], live.ts.state["student"])
    passes = {
        "teacher": forward(live.parts.teachers[0].model, live.teacher, batch),
        "student": forward(live.parts.student, jax.tree.map(np.asarray, student), batch),
    }
    timed(passes, 1)  # compiles
    return timed(passes, 10 * rounds) | timed({"live": live.epoch, "cached": read.epoch}, rounds)


def accuracies(taught: Path, home: Path, steps: int, seeds: int) -> dict[str, list[float]]:
    """The final accuracy in % of students from each cache, by seed."""
    found: dict[str, list[float]] = {}
    for number, (name, words) in enumerate(KEPT.items()):
        config = beside(taught, f"outputs(folder={str(home / f'kept-{number}')!r}{words})", steps=steps)
        config = differ(config, evaluate={"every": steps, "batch_size": 500, "layers": ()})
        cache.write(config, QUIET)
        found[name] = []
        for seed in range(seeds):
            rows = jaxdistill.distill(differ(config, seed=seed), home / f"{number}-{seed}", QUIET).rows
            found[name].append(100 * rows[-1]["accuracy"])
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/cache-benchmark", type=Path, help="students that are there stay")
    words.add_argument("--rounds", default=5, type=int)
    words.add_argument("--seeds", default=3, type=int, help="of the students; 0: time alone")
    words.add_argument("--steps", default=400, type=int, help="of the teacher, and of the students that are judged")
    known = words.parse_args()
    home, console = known.workdir, Console()
    alone = digits(student={"model": TEACHER}, objective={"cross_entropy": {}}, steps=known.steps)
    jaxdistill.distill(alone, home / "teacher", QUIET)
    took = speed(home / "teacher", home, known.rounds)
    ms = {name: 1000 * seconds for name, seconds in took.items()}
    costs, faster = took["teacher"] / took["student"], took["live"] / took["cached"]
    console.print(f"forward: teacher {ms['teacher']:.1f} ms, student {ms['student']:.1f} ms, ratio {costs:.2f}")
    console.print(f"epoch: live {ms['live']:.0f} ms, cached {ms['cached']:.0f} ms, {faster:.2f} times faster")
    right = accuracies(home / "teacher", home, known.steps, known.seeds) if known.seeds else {}
    table = Table("cache", "accuracy %", "beside float32", "each seed")
    for name, values in right.items():
        apart = np.mean(values) - np.mean(right["float32"])
        table.add_row(name, f"{np.mean(values):.2f}", f"{apart:+.2f}", ", ".join(f"{value:.1f}" for value in values))
    console.print(table)
    (home / "cache.json").write_text(json.dumps({"seconds": took, "accuracy": right}, indent=1))


if __name__ == "__main__":
    main()
