"""Can a quiz mend a teacher? python -m experiments.meta [--workdir DIR] [--seeds 5] [--first 0] [--arms meta,tuned]

A teacher that learned wrong labels of two classes, a hundred rows with right ones, and what may be made of them. The
broken twin lets the teacher climb where it should descend. A run that was stopped goes on.
"""

import argparse
import json
from pathlib import Path

import optax
from rich.console import Console
from rich.table import Table

import jaxdistill
from jaxdistill.core.registry import optimizers
from jaxdistill.evaluation.comparison import paired, ranged
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load

CONFIG = Path(__file__).parents[2] / "configs" / "meta.py"


@optimizers.register
def climbing_adamw() -> optax.GradientTransformation:
    """The broken twin of `adamw`: up the gradient."""
    return optax.chain(optimizers["adamw"](), optax.scale(-1.0))


def arms():
    """The configs that are compared, by name."""
    quiet = {"control": False, "logging": {"tensorboard": False}, "mesh": {"data": 1}}
    found = {word: differ(load(f"{CONFIG}:{word}"), **quiet) for word in ("static", "meta", "tuned", "labels")}
    climbing = {"teachers": {**found["meta"].roles.teachers.to_dict(), "optimizer": "climbing_adamw()"}}
    return found | {"wrong sign": differ(found["meta"], roles=climbing)}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/meta-study", type=Path)
    words.add_argument("--seeds", default=5, type=int)
    words.add_argument("--first", default=0, type=int, help="the first seed")
    words.add_argument("--arms", default="", help="some of them, by name; empty: all")
    known = words.parse_args()
    console, quiet = Console(), Console(quiet=True)

    programs = {"compilation_cache": str((known.workdir / "programs").absolute())}
    every = {name: differ(config, logging=programs) for name, config in arms().items()}
    compared = {name: config for name, config in every.items() if name in known.arms.split(",") or not known.arms}
    found: dict[str, list[float]] = {"teacher": [], **{name: [] for name in compared}}
    for seed in range(known.first, known.first + known.seeds):
        start = known.workdir / f"teacher-{seed}"
        one = differ(every["static"], steps=1, seed=seed)
        (teacher, *_) = jaxdistill.distill(one, start, quiet).rows
        found["teacher"].append(100 * teacher["accuracy"])
        for name, config in compared.items():
            trained = {"wrong": {**config.teachers.wrong.to_dict(), "checkpoint": str(start / "teachers" / "wrong")}}
            rows = jaxdistill.distill(
                differ(config, seed=seed, teachers=trained), known.workdir / f"{name.replace(' ', '-')}-{seed}", quiet
            ).rows
            found[name].append(100 * next(row["accuracy"] for row in rows if row["name"] == "student"))
        console.print(f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in found.items()))

    table = Table("arm", "accuracy % (95 % interval)", "beside tuned")
    for name, values in found.items():
        beside = str(paired(values, found["tuned"])) if "tuned" in found and name not in ("tuned", "teacher") else ""
        table.add_row(name, ranged(values), beside)
    console.print(table)
    (known.workdir / "meta.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
