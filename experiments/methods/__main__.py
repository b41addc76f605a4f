"""Run every method of configs/methods.py: python -m experiments.methods [--workdir DIR] [--seeds 3] [--only NAME ...]

Compares each method with the same student on labels alone (the control) and on soft targets. A teacher is trained once
for each pair of networks. For each seed all methods start from the same student and see the same batches. A run that
was stopped resumes. Writes results.json in this folder, from which docs/make.py puts each result on its page.
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdistill.run.config import differ
from jaxdistill.run.study import run_or_resume

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


def methods_module():
    """Import the repository's configs/methods.py."""
    spec = importlib.util.spec_from_file_location("methods", HERE.parents[1] / "configs" / "methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arms(methods) -> dict[str, tuple[str, object]]:
    """Return the configs by `pair/name`: for each pair of networks the control, soft targets, and its methods."""
    configs = {}
    for pair in methods.PAIRS:
        configs[f"{pair}/control"] = differ(methods.beside_labels(pair, {}), teachers={})
        configs[f"{pair}/kd"] = methods.beside_labels(pair, {"kd": {"term": "kd(temperature=4.0)"}}, labels=0.1)
        for name, method in methods.METHODS.items():
            if method.pair == pair:
                configs[f"{pair}/{name}"] = methods.get_config(name)
    return configs


def accuracy(config, of: str, workdir: Path) -> float:
    """Run a config and return the accuracy in % of one of its networks at its last step."""
    logging = {"tensorboard": False, "every": 100, "compilation_cache": str(workdir.parents[2] / "compiled")}
    rows = run_or_resume(differ(config, control=False, logging=logging), workdir)
    (value,) = (100 * row["accuracy"] for row in rows if row["name"].startswith(of))
    return round(value, 2)


def with_trained_teacher(config, folder: Path):
    """Replace the teacher of a config, if there is one, by the trained checkpoint."""
    return differ(config, teachers={n: {**t, "checkpoint": str(folder)} for n, t in config.teachers.to_dict().items()})


def show(accuracies: dict[str, list[float]], methods, console: Console) -> None:
    """Print the table, with a section for each pair of networks."""
    table = Table("learns from labels and", "accuracy %", "over labels alone", "over kd")
    mean = lambda arm: np.mean(accuracies[arm])
    for arm, values in accuracies.items():
        pair, name = arm.split("/")
        if name == "teacher":
            table.add_section()
            table.add_row(f"({pair}: teacher)", f"{values[0]:.1f}", "", "")
            continue
        others = [f"{pair}/{other}" for other in ("control", "kd")]
        beside = [f"{mean(arm) - mean(o):+.1f}" if o in accuracies and o != arm else "" for o in others]
        spread = f" +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        table.add_row(f"{pair}: {name}", f"{mean(arm):.1f}{spread}", *beside)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/methods", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--only", nargs="*", help="pair/name, such as mlp/kd; results are printed and not written")
    args = parser.parse_args()
    console, methods, accuracies = Console(width=120), methods_module(), {}
    chosen = {arm: config for arm, config in arms(methods).items() if not args.only or arm in args.only}
    for seed in range(args.seeds):
        for arm, config in chosen.items():
            start = time.perf_counter()
            pair, _ = arm.split("/")
            teacher = args.workdir / pair / "teacher" / "0"
            if f"{pair}/teacher" not in accuracies:  # trained as a run of the config would train it
                teacher_run = differ(methods.beside_labels(pair, {}), steps=1)
                accuracies[f"{pair}/teacher"] = [accuracy(teacher_run, "teacher", teacher)]
            student_run = differ(with_trained_teacher(config, teacher / "teachers" / "taught"), seed=seed)
            accuracies.setdefault(arm, []).append(accuracy(student_run, "student", args.workdir / arm / str(seed)))
            console.print(f"{arm}, seed {seed}: {accuracies[arm][-1]} % ({time.perf_counter() - start:.0f} s)")
    show(accuracies, methods, console)
    if not args.only:
        RESULTS.write_text(json.dumps(accuracies, indent=0) + "\n")


if __name__ == "__main__":
    main()
