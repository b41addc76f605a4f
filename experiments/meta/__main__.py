"""Study meta distillation: python -m experiments.meta [--workdir DIR] [--seeds 5] [--first 0] [--arms meta,tuned]

A teacher has learned wrong labels of two classes, and a quiz has a hundred rows with correct ones. The arms differ in
how they use the quiz. The broken twin moves the teacher up the gradient instead of down. A run that was stopped
resumes.
"""

import argparse
import json
from pathlib import Path

import optax
from rich.console import Console
from rich.table import Table

import jaxdistill
from jaxdistill.core.registry import optimizers
from jaxdistill.evaluation.comparison import mean_and_interval, paired
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "meta.py"


@optimizers.register
def climbing_adamw() -> optax.GradientTransformation:
    """Broken twin of `adamw`: moves up the gradient."""
    return optax.chain(optimizers["adamw"](), optax.scale(-1.0))


def arms():
    """Return the configs of all arms by name."""
    quiet = {"control": False, "logging": {"tensorboard": False}, "mesh": {"data": 1}}
    configs = {word: differ(load_config(f"{CONFIG}:{word}"), **quiet) for word in ("static", "meta", "tuned", "labels")}
    climbing = {"teachers": {**configs["meta"].roles.teachers.to_dict(), "optimizer": "climbing_adamw()"}}
    return configs | {"wrong sign": differ(configs["meta"], roles=climbing)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/meta-study", type=Path)
    parser.add_argument("--seeds", default=5, type=int)
    parser.add_argument("--first", default=0, type=int, help="the first seed")
    parser.add_argument("--arms", default="", help="comma-separated names of arms; empty: all")
    args = parser.parse_args()
    console, quiet = Console(), Console(quiet=True)

    programs = {"compilation_cache": str((args.workdir / "programs").absolute())}
    configs = {name: differ(config, logging=programs) for name, config in arms().items()}
    compared = {name: config for name, config in configs.items() if name in args.arms.split(",") or not args.arms}
    accuracies: dict[str, list[float]] = {"teacher": [], **{name: [] for name in compared}}
    for seed in range(args.first, args.first + args.seeds):
        start = args.workdir / f"teacher-{seed}"
        teacher_run = differ(configs["static"], steps=1, seed=seed)
        (teacher, *_) = jaxdistill.distill(teacher_run, start, quiet).rows
        accuracies["teacher"].append(100 * teacher["accuracy"])
        for name, config in compared.items():
            trained = {"wrong": {**config.teachers.wrong.to_dict(), "checkpoint": str(start / "teachers" / "wrong")}}
            rows = jaxdistill.distill(
                differ(config, seed=seed, teachers=trained),
                args.workdir / f"{name.replace(' ', '-')}-{seed}",
                quiet,
            ).rows
            accuracies[name].append(100 * next(row["accuracy"] for row in rows if row["name"] == "student"))
        console.print(f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in accuracies.items()))

    table = Table("arm", "accuracy % (95 % interval)", "beside tuned")
    for name, values in accuracies.items():
        has_gain = "tuned" in accuracies and name not in ("tuned", "teacher")
        beside = str(paired(values, accuracies["tuned"])) if has_gain else ""
        table.add_row(name, mean_and_interval(values), beside)
    console.print(table)
    (args.workdir / "meta.json").write_text(json.dumps(accuracies, indent=1))


if __name__ == "__main__":
    main()
