"""Measure the gain of distillation on the quickstart: python -m experiments.gain [--workdir DIR] [--seeds 5]

Compares the quickstart's student with its control, the same student trained on labels alone. For each seed both have
the same initialisation, data order and steps. The learning rate of each is searched on a fifth of the training set,
with a separate seed. A run that was stopped resumes.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

import jaxdistill
from jaxdistill.evaluation.comparison import paired, spread
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
RATES = (0.001, 0.003, 0.01)
SEARCH_SEED = 100
TASK = {"cross_entropy": {}}


def accuracy(config, folder: Path, console: Console) -> float:
    """Train one student and return its test accuracy in %."""
    rows = jaxdistill.distill(config, folder, console).rows
    return 100 * next(row["accuracy"] for row in rows if row["name"] == "student")


def arms(config, teacher: Path):
    """Return the configs of the student, which learns from the teacher, and of the control."""
    teachers = {name: {**entry, "checkpoint": str(teacher)} for name, entry in config.teachers.to_dict().items()}
    distilled = differ(config, teachers=teachers, control=False)
    return {"student": distilled, "control": differ(config, teachers={}, objective=TASK, control=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/gain", type=Path)
    parser.add_argument("--seeds", default=5, type=int)
    args = parser.parse_args()
    console, quiet = Console(), Console(quiet=True)

    config = load_config(str(QUICKSTART))
    console.print("training the teacher")
    jaxdistill.distill(differ(config, steps=1, control=False), args.workdir / "teacher", console)
    (name,) = config.teachers
    results = {}
    for arm, base in arms(config, args.workdir / "teacher" / "teachers" / name).items():
        held_out = {"train": "train[:80%]", "test": "train[80%:]"}
        accuracies = {}
        for rate in RATES:
            searched = differ(base, rate=f"cosine(start={rate})", seed=SEARCH_SEED, data=held_out)
            accuracies[rate] = accuracy(searched, args.workdir / f"{arm}-rate-{rate}", quiet)
            console.print(f"{arm}: rate {rate}: {accuracies[rate]:.2f} % on the held-out fifth of the training set")
        best = max(accuracies, key=accuracies.get)
        values = []
        for seed in range(args.seeds):
            final = differ(base, rate=f"cosine(start={best})", seed=seed)
            values.append(accuracy(final, args.workdir / f"{arm}-seed-{seed}", quiet))
            console.print(f"{arm}: rate {best}, seed {seed}: {values[-1]:.2f} %")
        results[arm] = {"rate": best, "search": accuracies, "accuracy": values}

    gain = paired(results["student"]["accuracy"], results["control"]["accuracy"])
    for arm, result in results.items():
        console.print(f"{arm}: {spread(result['accuracy'])} % at rate {result['rate']}")
    console.print(f"gain in points: {gain}")
    summary = {**results, "gain": gain.differences, "interval": [gain.low, gain.high]}
    (args.workdir / "gain.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
