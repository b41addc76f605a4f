"""Does a student know a digit that it never saw? python -m experiments.missing_class [--workdir DIR] [--seeds 3]

It learns from soft targets alone, on digits among which there is no 3, at four temperatures. The broken twin learns
from the teacher's argmax. A run that was stopped goes on.
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
    """The fields of a split of mnist5k, whole."""
    records = open_records("mnist5k", split, default_folder(), "data", "train")
    return records.take(np.arange(len(records)))


class Source(list):
    classes = 10


@registry.datasets.register
def digits_without(digit: int, *, split: str):
    """mnist5k, of which a digit is missing in training."""
    found = digits(split)
    kept = [n for n, label in enumerate(found["label"]) if label != digit or not split.startswith("train")]
    return Source({name: found[name][n] for name in ("image", "label")} for n in kept)


@registry.losses.register
def argmax_labels():
    """The broken twin of `kd`: all that it takes from the teacher is the class that it would name."""
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


def raised(logits: np.ndarray, share: float) -> np.ndarray:
    """The logits with the missing class's bias as high as makes the student name it as often as it occurs.

    That needs no label: only how often the digit occurs.
    """
    others = np.delete(logits, MISSING, axis=1).max(axis=1)
    bias = np.quantile(others - logits[:, MISSING], share)
    return logits + bias * (np.arange(logits.shape[1]) == MISSING)


def judged(variables, test) -> dict[str, float]:
    """Recall of the missing digit and accuracy in %, of the student as it is and with its bias raised."""
    model = registry.models.build(STUDENT, "student.model")
    batch = {"image": test["image"], "mask": np.ones(len(test["label"]), np.float32)}
    logits = np.asarray(model.apply(*variables, batch, train=False, key=jax.random.key(0))[0].logits)
    missing = test["label"] == MISSING
    found = {}
    for name, said in (("raw", logits), ("fixed", raised(logits, missing.mean()))):
        right = said.argmax(-1) == test["label"]
        found |= {f"recall {name}": 100 * right[missing].mean(), f"accuracy {name}": 100 * right.mean()}
    return {name: round(float(value), 2) for name, value in found.items()}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/missing_class", type=Path)
    words.add_argument("--seeds", default=3, type=int)
    known = words.parse_args()
    console, quiet, config, test = Console(width=120), Console(quiet=True), base(), digits("test")

    whole = differ(config, steps=1, data={"name": "mnist5k"})
    (teacher, _) = jaxdistill.distill(whole, known.workdir / "teacher", quiet).rows
    console.print(f"teacher, who saw all digits: {100 * teacher['accuracy']:.1f} %")
    folder = str(known.workdir / "teacher" / "teachers" / "whole")
    taught = {"whole": {**config.teachers.whole.to_dict(), "checkpoint": folder}}
    found = {}
    for number, (arm, term) in enumerate(ARMS.items()):
        found[arm] = []
        for seed in range(known.seeds):
            run = differ(config, seed=seed, teachers=taught, objective={"kd": {"term": term}})
            result = jaxdistill.distill(run, known.workdir / f"arm-{number}" / str(seed), quiet)
            found[arm].append(judged(result.variables["student"], test))
        console.print(arm, found[arm])
    say = lambda values: f"{np.mean(values):.1f} +- {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"
    names = list(found[arm][0])
    table = Table("learns from", *(f"{name} %" for name in names))
    for arm, seeds in found.items():
        table.add_row(arm, *(say([one[name] for one in seeds]) for name in names))
    console.print(table)
    (known.workdir / "missing_class.json").write_text(json.dumps({"teacher": teacher["accuracy"], **found}, indent=1))


if __name__ == "__main__":
    main()
