"""What is kept of tasks that never come again? python -m experiments.continual [--workdir DIR] [--seeds 3] [--only ...]

Ten digits come two at a time, 800 records each, one task after the other. A student is judged at the end of every task:
among all ten classes, where nobody says which task a record is of (class-incremental), and among the two of its task
(task-incremental). Forgetting is what the accuracy on a task lost since it was best, over all tasks but the last.

The broken twin of replay has a buffer that is begun anew when it is full, that of EWC an anchor that is set when all is
over, that of LwF a teacher that is the student of one step ago. A run that was stopped goes on.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdistill.core import registry
from jaxdistill.core.schedules import Scalar
from jaxdistill.core.sums import Mean
from jaxdistill.evaluation.comparison import ranged
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load
from jaxdistill.run.study import ran

TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
STEPS = 200  # of a task
SIZE, MORE, ALPHA, BETA = 200, 500, 0.5, 0.5  # of the buffer: 20 rows of a class, or 50
CONFIG = Path(__file__).parents[2] / "configs" / "continual.py"


@registry.steps.register
def forgetful(student, teachers, objective, optimizer, size: int = SIZE, alpha: float = ALPHA, beta: float = BETA):
    """The broken twin of `replay`: its buffer is begun anew when it is full, so that it holds the newest rows alone."""
    step = registry.steps["replay"](student, teachers, objective, optimizer, size=size, alpha=alpha, beta=beta)

    def update(ts, frozen, batch):
        buffer = ts.state["buffer"]
        forgotten = replace(buffer, seen=buffer.seen % size)  # a multiple of the batch: no row is left out
        return step.update(replace(ts, state=ts.state | {"buffer": forgotten}), frozen, batch)

    return step._replace(update=update)


@registry.steps.register
def judged(student, teachers, objective, optimizer, inner: str):
    """A step of this spec, and at the end of each task what its student knows of every task, of the stream `test`."""
    given = {"student": student, "teachers": teachers, "objective": objective, "optimizer": optimizer}
    spec = registry.parse(inner, "step")
    numbers = {Scalar: lambda value, path: value}
    step = registry.steps.build(spec._replace(kwargs=spec.kwargs | given), "step", numbers)

    def judge(ts, rows):
        out, _ = student.apply(ts.params["student"], ts.state["student"], rows, train=False, key=ts.key)
        label, found = rows["label"], {}
        for number, task in enumerate(TASKS):
            own = jnp.isin(label, jnp.asarray(task))
            among = jnp.asarray(task)[out.logits[:, task].argmax(1)]
            for name, said in (("all", out.logits.argmax(1)), ("own", among)):
                found[f"{name}/{number}"] = Mean(jnp.sum(own & (said == label)) * 100.0, jnp.sum(own) * 1.0)
        return found

    def update(ts, frozen, batch):
        new, metrics = step.update(ts, frozen, {stream: batch[stream] for stream in step.streams})
        looks = jax.eval_shape(judge, new, batch["test"])
        nothing = lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), looks)
        return new, metrics | jax.lax.cond(new.step % STEPS == 0, judge, nothing, new, batch["test"])

    return step._replace(update=update, streams=step.streams | {"test"})


def arms(workdir: Path):
    """The configs that are compared, by name: ways of configs/continual.py, and what differs from them."""
    twin_of_ewc = f"ewc(weight=10.0, every={STEPS * len(TASKS)})"
    labels = f"replay(size={SIZE}, alpha=0.0, beta={BETA})"
    ways = {
        "plain descent": ("plain", ""),
        "DER++": ("replay", ""),
        "DER++, more": ("replay", f"replay(size={MORE}, alpha={ALPHA}, beta={BETA})"),
        "labels replayed": ("replay", labels),
        "begun anew when full": ("replay", "forgetful()"),
        "EWC": ("ewc", ""),
        "EWC, never anchored": ("ewc", twin_of_ewc),
        "LwF": ("lwf", ""),
        "LwF, of the last step": ("lwf", "averaged(momentum=0.0)"),
        "all at once": ("at_once", ""),
    }
    found = {}
    for name, (word, step) in ways.items():
        config = load(f"{CONFIG}:{word}")
        found[name] = differ(
            config,
            step=f"judged(inner={step or config.step!r})",
            streams={"test": {"split": "test", "batch_size": 1000}},  # all of it in a batch; only looked at
            logging={"tensorboard": False, "every": STEPS, "compilation_cache": str(workdir / "programs")},
            mesh={"data": 1},
        )
    return found


def table_of(folder: Path) -> np.ndarray:
    """Accuracy in % on every task after every task, among all classes and among its own, `[tasks, 2, tasks]`."""
    lines = [json.loads(line) for line in (folder / "student" / "log.jsonl").read_text().splitlines() if line]
    at = {line["step"]: line for line in lines if line["kind"] == "train"}  # the step of an evaluation has its own line
    each = [at[number * STEPS] for number in range(1, len(TASKS) + 1)]
    return np.asarray([[[line[f"{name}/{k}"] for k in range(len(TASKS))] for name in ("all", "own")] for line in each])


def study(config, folder: Path) -> dict[str, list]:
    """What one run knows at its end, and what it lost."""
    ran(config, folder)
    table = table_of(folder)
    lost = (table[:-1].max(0) - table[-1])[:, :-1].mean(1)
    return {"accuracy": table[-1].mean(1).tolist(), "forgetting": lost.tolist(), "table": table.tolist()}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/continual", type=Path)
    words.add_argument("--seeds", default=3, type=int)
    words.add_argument("--only", nargs="*", default=[], help="arms by their first words")
    known = words.parse_args()
    console = Console()

    found = {}
    for arm, each in arms(known.workdir).items():
        if known.only and not arm.startswith(tuple(known.only)):
            continue
        folder = known.workdir / arm.replace(" ", "-")
        found[arm] = [study(differ(each, seed=seed), folder / str(seed)) for seed in range(known.seeds)]
        console.print(f"{arm}: {[round(run['accuracy'][0], 1) for run in found[arm]]}")

    table = Table("learns by", "of all classes %", "forgotten", "of its task's %", "forgotten ")
    for arm, runs in found.items():
        each = [[run[what][n] for run in runs] for n in (0, 1) for what in ("accuracy", "forgetting")]
        table.add_row(arm, *map(ranged, each))
    console.print(table)
    (known.workdir / "continual.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
