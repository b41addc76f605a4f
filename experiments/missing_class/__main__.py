"""Study a digit that the student never saw: python -m experiments.missing_class [--workdir DIR] [--seeds 3]

The student learns from soft targets alone, on digits without a 3, at four temperatures. The broken twin learns from the
teacher's argmax. A run that was stopped resumes.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxdistill
from jaxdistill import make
from jaxdistill.core import registry
from jaxdistill.core.packages import default_folder
from jaxdistill.data.datasets import open_records
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import stateless
from jaxdistill.run.config import differ

MISSING = 3
STUDENT = "mlp(widths=(128,), classes=10)"
ARMS = {f"T = {t}": f"kd(temperature={t}.0)" for t in (1, 2, 4, 8)} | {"argmax of the teacher": "argmax_labels"}


def digits(split: str):
    """Load all records of a split of mnist5k."""
    records = open_records("mnist5k", split, default_folder(), "data", "train")
    return records.take(np.arange(len(records)))


class Source(list):
    classes = 10


@registry.datasets.register
def digits_without(digit: int, *, split: str):
    """Load mnist5k without one digit in the training split."""
    fields = digits(split)
    kept = [n for n, label in enumerate(fields["label"]) if label != digit or not split.startswith("train")]
    return Source({name: fields[name][n] for name in ("image", "label")} for n in kept)


@registry.losses.register
def argmax_labels():
    """Broken twin of `kd`: learns from the teacher's argmax alone."""
    values = lambda signals: softmax_cross_entropy(signals.student.logits, signals.teacher.logits.argmax(-1))
    return stateless(values, needs=frozenset({"teacher"}))


def base():
    return make(
        title=f"Digits without a {MISSING}",
        steps=500,
        batch_size=100,
        student={"model": STUDENT},
        teachers={
            "whole": {
                "model": "mlp(widths=(256, 256), classes=10)",
                "steps": 1000,
                "rate": "cosine(start=0.003)",
                "augment": ("shift(pixels=2)",),
            }
        },
        objective={"kd": {}},
        control=False,
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": f"digits_without(digit={MISSING})"},
        evaluate={"every": 1000, "batch_size": 500},
        logging={"tensorboard": False},
    )


def raise_bias(logits: np.ndarray, share: float) -> np.ndarray:
    """Raise the missing class's bias until it is predicted as often as it occurs.

    This needs no labels, only the share of the class.

    Args:
        logits: `[rows, classes]`.
        share: of the rows that belong to the missing class.
    """
    others = np.delete(logits, MISSING, axis=1).max(axis=1)
    bias = np.quantile(others - logits[:, MISSING], share)
    return logits + bias * (np.arange(logits.shape[1]) == MISSING)


def evaluate(variables, test) -> dict[str, float]:
    """Evaluate recall of the missing digit and accuracy in %, with the student's bias as it is and raised."""
    model = registry.models.build(STUDENT, "student.model")
    batch = {"image": test["image"], "mask": np.ones(len(test["label"]), np.float32)}
    logits = np.asarray(model.apply(*variables, batch, train=False, key=jax.random.key(0))[0].logits)
    missing = test["label"] == MISSING
    results = {}
    for name, predicted in (("raw", logits), ("fixed", raise_bias(logits, missing.mean()))):
        right = predicted.argmax(-1) == test["label"]
        results |= {f"recall {name}": 100 * right[missing].mean(), f"accuracy {name}": 100 * right.mean()}
    return {name: round(float(value), 2) for name, value in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/missing_class", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    args = parser.parse_args()
    console, quiet, config, test = Console(width=120), Console(quiet=True), base(), digits("test")

    teacher_run = differ(config, steps=1, data={"name": "mnist5k"})
    (teacher, _) = jaxdistill.distill(teacher_run, args.workdir / "teacher", quiet).rows
    console.print(f"teacher, trained on all digits: {100 * teacher['accuracy']:.1f} %")
    folder = str(args.workdir / "teacher" / "teachers" / "whole")
    teachers = {"whole": {**config.teachers.whole.to_dict(), "checkpoint": folder}}
    results = {}
    for number, (arm, term) in enumerate(ARMS.items()):
        results[arm] = []
        for seed in range(args.seeds):
            run = differ(config, seed=seed, teachers=teachers, objective={"kd": {"term": term}})
            result = jaxdistill.distill(run, args.workdir / f"arm-{number}" / str(seed), quiet)
            results[arm].append(evaluate(result.variables["student"], test))
        console.print(arm, results[arm])
    formatted = lambda values: f"{np.mean(values):.1f} +- {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"
    names = list(results[arm][0])
    table = Table("learns from", *(f"{name} %" for name in names))
    for arm, seeds in results.items():
        table.add_row(arm, *(formatted([result_of_seed[name] for result_of_seed in seeds]) for name in names))
    console.print(table)
    (args.workdir / "missing_class.json").write_text(json.dumps({"teacher": teacher["accuracy"], **results}, indent=1))


if __name__ == "__main__":
    main()
