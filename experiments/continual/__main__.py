"""Study continual learning on split digits: python -m experiments.continual [--workdir DIR] [--seeds 3] [--only ...]

Ten digits come two at a time, 800 records per task, one task after the other. A student is evaluated at the end of
every task: over all ten classes, without the task of a record (class-incremental), and over the two classes of its task
(task-incremental). Forgetting is the accuracy lost on a task since it was best, averaged over all tasks but the last.

The broken twins: for replay, a buffer that is emptied whenever it is full; for EWC, an anchor that is set only after
the last task; for LwF, a teacher that is the student of one step ago. A run that was stopped resumes.
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
from jaxdistill.core.spec import parse
from jaxdistill.core.sums import Mean
from jaxdistill.evaluation.comparison import mean_and_interval
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import run_or_resume

TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
STEPS = 200  # for each task
BUFFER, LARGE_BUFFER, ALPHA, BETA = 200, 500, 0.5, 0.5  # rows (20 or 50 for each class); weights of replay
CONFIG = Path(__file__).parents[2] / "configs" / "continual.py"


@registry.steps.register
def forgetful(student, teachers, objective, optimizer, size: int = BUFFER, alpha: float = ALPHA, beta: float = BETA):
    """Broken twin of `replay`: the buffer is emptied when it is full, so it holds the newest rows alone."""
    step = registry.steps["replay"](student, teachers, objective, optimizer, size=size, alpha=alpha, beta=beta)

    def update(ts, frozen, batch):
        buffer = ts.state["buffer"]
        forgotten = replace(buffer, seen=buffer.seen % size)  # size is a multiple of the batch, so no row is skipped
        return step.update(replace(ts, state=ts.state | {"buffer": forgotten}), frozen, batch)

    return step._replace(update=update)


@registry.steps.register
def judged(student, teachers, objective, optimizer, inner: str):
    """Run the step of this spec, and evaluate the student on every task at the end of each task.

    The evaluation uses the stream `test`.

    Args:
        inner: the spec string of the step.
    """
    parts = {"student": student, "teachers": teachers, "objective": objective, "optimizer": optimizer}
    spec = parse(inner, "step")
    numbers = {Scalar: lambda value, path: value}
    step = registry.steps.build(spec._replace(kwargs=spec.kwargs | parts), "step", numbers)

    def judge(ts, rows):
        out, _ = student.apply(ts.params["student"], ts.state["student"], rows, train=False, key=ts.key)
        label, accuracies = rows["label"], {}
        for number, task in enumerate(TASKS):
            in_task = jnp.isin(label, jnp.asarray(task))
            within_task = jnp.asarray(task)[out.logits[:, task].argmax(1)]
            for name, predicted in (("all", out.logits.argmax(1)), ("own", within_task)):
                right = in_task & (predicted == label)
                accuracies[f"{name}/{number}"] = Mean(jnp.sum(right) * 100.0, jnp.sum(in_task) * 1.0)
        return accuracies

    def update(ts, frozen, batch):
        new, metrics = step.update(ts, frozen, {stream: batch[stream] for stream in step.streams})
        metric_shapes = jax.eval_shape(judge, new, batch["test"])
        zeros = lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metric_shapes)
        return new, metrics | jax.lax.cond(new.step % STEPS == 0, judge, zeros, new, batch["test"])

    return step._replace(update=update, streams=step.streams | {"test"})


def arms(workdir: Path):
    """Return the configs of all arms by name: presets of configs/continual.py, some with another step."""
    twin_of_ewc = f"ewc(weight=10.0, every={STEPS * len(TASKS)})"
    labels = f"replay(size={BUFFER}, alpha=0.0, beta={BETA})"
    choices = {
        "plain descent": ("plain", ""),
        "DER++": ("replay", ""),
        "DER++, more": ("replay", f"replay(size={LARGE_BUFFER}, alpha={ALPHA}, beta={BETA})"),
        "labels replayed": ("replay", labels),
        "begun anew when full": ("replay", "forgetful()"),
        "EWC": ("ewc", ""),
        "EWC, never anchored": ("ewc", twin_of_ewc),
        "LwF": ("lwf", ""),
        "LwF, of the last step": ("lwf", "averaged(momentum=0.0)"),
        "all at once": ("at_once", ""),
    }
    configs = {}
    for name, (word, step) in choices.items():
        config = load_config(f"{CONFIG}:{word}")
        configs[name] = differ(
            config,
            step=f"judged(inner={step or config.step!r})",
            streams={"test": {"split": "test", "batch_size": 1000}},  # one batch; used for evaluation only
            logging={"tensorboard": False, "every": STEPS, "compilation_cache": str(workdir / "programs")},
            mesh={"data": 1},
        )
    return configs


def table_of(folder: Path) -> np.ndarray:
    """Read a log: accuracy in % after each task, over all classes and over the task's own, on each task.

    The result has the shape `[tasks, 2, tasks]`.
    """
    lines = [json.loads(line) for line in (folder / "student" / "log.jsonl").read_text().splitlines() if line]
    line_at = {line["step"]: line for line in lines if line["kind"] == "train"}  # evaluations have their own lines
    task_lines = [line_at[number * STEPS] for number in range(1, len(TASKS) + 1)]
    return np.asarray(
        [[[line[f"{name}/{k}"] for k in range(len(TASKS))] for name in ("all", "own")] for line in task_lines]
    )


def run_arm(config, folder: Path) -> dict[str, list]:
    """Run one config and return its final accuracy, its forgetting, and the whole table."""
    run_or_resume(config, folder)
    table = table_of(folder)
    forgetting = (table[:-1].max(0) - table[-1])[:, :-1].mean(1)
    return {"accuracy": table[-1].mean(1).tolist(), "forgetting": forgetting.tolist(), "table": table.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/continual", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--only", nargs="*", default=[], help="only arms whose names start with these words")
    args = parser.parse_args()
    console = Console()

    results = {}
    for arm, config in arms(args.workdir).items():
        if args.only and not arm.startswith(tuple(args.only)):
            continue
        folder = args.workdir / arm.replace(" ", "-")
        results[arm] = [run_arm(differ(config, seed=seed), folder / str(seed)) for seed in range(args.seeds)]
        console.print(f"{arm}: {[round(run['accuracy'][0], 1) for run in results[arm]]}")

    table = Table("learns by", "among all classes %", "forgotten", "among its task's %", "forgotten ")
    for arm, runs in results.items():
        columns = [[run[what][n] for run in runs] for n in (0, 1) for what in ("accuracy", "forgetting")]
        table.add_row(arm, *map(mean_and_interval, columns))
    console.print(table)
    (args.workdir / "continual.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
