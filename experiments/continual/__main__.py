"""What is kept of tasks that never come again? python -m experiments.continual [--workdir DIR] [--seeds 3] [--only ...]

Ten digits come two at a time, 800 records each, one task after the other. A student is judged at the end of every task:
among all ten classes, where nobody says which task a record is of (class-incremental), and among the two of its task
(task-incremental). Forgetting is what the accuracy on a task lost since it was best, over all tasks but the last.

The broken twin of replay has a buffer of the newest rows. A run that was stopped goes on.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxdistill
from experiments.compare import spread
from jaxdistill import make, registry
from jaxdistill.config import differ
from jaxdistill.data import open_records
from jaxdistill.fetch import default_folder

TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
STEPS, BATCH, SIZE = 200, 20, 200  # of a task, of a batch, of the buffer: 5 epochs of a task, 20 rows of a class
MODEL = "mlp(widths=(100, 100), classes=10)"
BEFORE = {"before": {"model": MODEL}}


@registry.steps.register
def newest(student, teachers, objective, optimizer, size: int = SIZE, alpha: float = 0.5, beta: float = 0.5):
    """The broken twin of `replay`: its buffer is filled from the beginning again and again."""
    step = registry.steps["replay"](student, teachers, objective, optimizer, size=size, alpha=alpha, beta=beta)

    def update(ts, frozen, batch):
        buffer = ts.state["buffer"]
        forgotten = replace(buffer, seen=buffer.seen % size)  # a multiple of the batch: no row is left out
        return step.update(replace(ts, state=ts.state | {"buffer": forgotten}), frozen, batch)

    return step._replace(update=update)


def base(workdir: Path):
    return make(
        title="Split digits",
        steps=STEPS * len(TASKS),
        batch_size=BATCH,
        student={"model": MODEL},
        objective={"cross_entropy": {}},
        control=False,
        optimizer="sgd(momentum=0.0)",
        rate=0.1,
        data={"name": "mnist5k", "order": f"tasks(groups={TASKS}, steps={STEPS})"},
        evaluate={"every": STEPS, "batch_size": 500},
        logging={"tensorboard": False, "every": STEPS, "compilation_cache": str(workdir / "programs")},
        mesh={"data": 1},
    )


def arms(config):
    """The configs that are compared, by name."""
    forgetful = {"cross_entropy": {}, "kd": {"term": "kd(temperature=2.0)"}}
    shuffled = {**config.data.to_dict(), "order": ""}
    return {
        "plain descent": config,
        "DER++": differ(config, step=f"replay(size={SIZE}, alpha=0.5, beta=0.5)"),
        "replay of labels alone": differ(config, step=f"replay(size={SIZE}, alpha=0.0, beta=1.0)"),
        "a buffer of the newest": differ(config, step="newest()"),
        "LwF": differ(config, step=f"averaged(momentum=0.0, every={STEPS})", teachers=BEFORE, objective=forgetful),
        "all at once": differ(config, data=shuffled),
    }


def judged(variables, records) -> np.ndarray:
    """Accuracy in % on the records of each task, among all classes and among its own, `[2, tasks]`."""
    model = registry.models.build(MODEL, "student.model")
    out, _ = model.apply(*variables, {"image": records["image"]}, train=False, key=jax.random.key(0))
    logits, label = np.asarray(out.logits), records["label"]
    found = np.zeros((2, len(TASKS)))
    for number, task in enumerate(TASKS):
        own = np.isin(label, task)
        among = np.asarray(task)[logits[own][:, task].argmax(1)]
        found[:, number] = [100 * np.mean(guess == label[own]) for guess in (logits[own].argmax(1), among)]
    return found


def study(config, folder: Path, records) -> dict[str, list]:
    """One run, from task to task: accuracy after each, `[tasks, 2, tasks]`."""
    seen = []
    for number in range(1, len(TASKS) + 1):
        result = jaxdistill.distill(differ(config, steps=number * STEPS), folder, Console(quiet=True))
        seen.append(judged(result.variables["student"], records))
    table = np.stack(seen)
    lost = (table[:-1].max(0) - table[-1])[:, :-1].mean(1)
    return {"accuracy": table[-1].mean(1).tolist(), "forgetting": lost.tolist(), "table": table.tolist()}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/continual", type=Path)
    words.add_argument("--seeds", default=3, type=int)
    words.add_argument("--only", nargs="*", default=[], help="arms by their first words")
    known = words.parse_args()
    console, config = Console(), base(known.workdir)

    test = open_records("mnist5k", "test", default_folder(), "data", "test")
    records, found = test.take(np.arange(len(test))), {}
    for arm, each in arms(config).items():
        if known.only and not arm.startswith(tuple(known.only)):
            continue
        folder = known.workdir / arm.replace(" ", "-")
        found[arm] = [study(differ(each, seed=seed), folder / str(seed), records) for seed in range(known.seeds)]
        console.print(f"{arm}: {[round(run['accuracy'][0], 1) for run in found[arm]]}")

    table = Table("learns by", "of all classes %", "forgotten", "of its task's %", "forgotten ")
    for arm, runs in found.items():
        told = lambda what, which, runs=runs: spread([run[what][which] for run in runs], 1)
        table.add_row(arm, *(told(what, which) for which in (0, 1) for what in ("accuracy", "forgetting")))
    console.print(table)
    (known.workdir / "continual.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
