"""Study matching of the teacher's derivatives: python -m experiments.jacobian [--workdir DIR] [--seeds 3]

A student learns from 100 digits and a teacher that saw 4,000, by soft targets alone or with one further term. The
broken twin uses different random directions for student and teacher. A run that was stopped resumes.
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
from jaxdistill.run.config import differ

KD = {"kd": {"term": "kd(temperature=4.0)"}}
TERMS = {  # added to soft targets; the weights are guesses, none was searched
    "jacobian": {"term": "jacobian", "weight": 10.0},
    "sobolev": {"term": "sobolev", "weight": 10.0},
    "hidden": {"term": "hidden(layers='last')"},
    "fisher_hints": {"term": "fisher_hints(layers='last')"},
    "loss_gradients": {"term": "loss_gradients(layers='last')"},
}


@registry.steps.register
def other_directions(student, teachers, objective, optimizer):
    """Broken twin of `offline`: the teachers' derivatives use other random directions than the student's."""

    def with_other_key(teacher):
        def apply(params, state, batch, *, train, key):
            return teacher.apply(params, state, batch, train=train, key=jax.random.fold_in(key, 1))

        return teacher._replace(apply=apply)

    return registry.steps["offline"](student, tuple(map(with_other_key, teachers)), objective, optimizer)


def base():
    return make(
        title="Derivatives of a teacher, on 100 digits",
        steps=300,
        batch_size=100,
        student={"model": "mlp(widths=(128, 128), classes=10)"},
        teachers={
            "wide": {
                "model": "mlp(widths=(256, 256), classes=10)",
                "steps": 600,
                "rate": "cosine(start=0.005)",
                "augment": ("shift(pixels=2)",),
            }
        },
        objective=KD,
        control=False,
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "mnist5k", "train": "train[:100]"},
        evaluate={"every": 300, "batch_size": 500},
        logging={"tensorboard": False},
        mesh={"data": 1},
    )


def arms(config, teacher: Path):
    """Return the configs of all arms by name."""
    with_teacher = differ(config, teachers={"wide": {**config.teachers.wide.to_dict(), "checkpoint": str(teacher)}})
    with_term = {f"kd + {name}": differ(with_teacher, objective=KD | {name: term}) for name, term in TERMS.items()}
    return {
        "labels": differ(config, teachers={}, objective={"cross_entropy": {}}),
        "kd": with_teacher,
        **with_term,
        "kd + jacobian, other directions": differ(with_term["kd + jacobian"], step="other_directions()"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/jacobian", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    args = parser.parse_args()
    console, quiet, config = Console(), Console(quiet=True), base()

    teacher_run = differ(config, steps=1, data={"train": "train"})
    (teacher, _) = jaxdistill.distill(teacher_run, args.workdir / "teacher", quiet).rows
    console.print(f"teacher: {100 * teacher['accuracy']:.1f} %")
    accuracies_of = {}
    for arm, arm_config in arms(config, args.workdir / "teacher" / "teachers" / "wide").items():
        folder = args.workdir / arm.replace(" ", "").replace("+", "-").replace(",", "-")
        runs = [
            jaxdistill.distill(differ(arm_config, seed=seed), folder / str(seed), quiet) for seed in range(args.seeds)
        ]
        accuracies_of[arm] = [100 * next(r["accuracy"] for r in run.rows if r["name"] == "student") for run in runs]
        console.print(f"{arm}: {', '.join(f'{accuracy:.1f}' for accuracy in accuracies_of[arm])}")

    table = Table("learns from", "accuracy %", "beside kd")
    for arm, accuracies in accuracies_of.items():
        gain = np.subtract(accuracies, accuracies_of["kd"])
        table.add_row(arm, f"{np.mean(accuracies):.1f} +- {np.std(accuracies, ddof=1):.1f}", f"{gain.mean():+.1f}")
    console.print(table)
    (args.workdir / "jacobian.json").write_text(json.dumps({"teacher": teacher["accuracy"], **accuracies_of}, indent=1))


if __name__ == "__main__":
    main()
