"""What is distillation worth? python -m experiments.gain [--workdir DIR] [--seeds 5]

The quickstart's student and its control, which learns from labels alone: for each seed the same initialisation, data
order and steps. Each arm's learning rate is searched on a fifth of the training set, with a seed of its own. A run that
was stopped goes on.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

import jaxdistill
from jaxdistill.evaluation.comparison import paired, spread
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
RATES = (0.001, 0.003, 0.01)
SEARCH_SEED = 100
TASK = {"cross_entropy": {}}


def accuracy(config, folder: Path, console: Console) -> float:
    """Trains one student and returns its held-out accuracy in %."""
    rows = jaxdistill.distill(config, folder, console).rows
    return 100 * next(row["accuracy"] for row in rows if row["name"] == "student")


def arms(config, teacher: Path):
    """The two configs that are compared: one learns from the teacher, one from labels alone."""
    learned = {name: {**entry, "checkpoint": str(teacher)} for name, entry in config.teachers.to_dict().items()}
    distilled = differ(config, teachers=learned, control=False)
    return {"student": distilled, "control": differ(config, teachers={}, objective=TASK, control=False)}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/gain", type=Path)
    words.add_argument("--seeds", default=5, type=int)
    known = words.parse_args()
    console, quiet = Console(), Console(quiet=True)

    config = load(str(QUICKSTART))
    console.print("training the teacher")
    jaxdistill.distill(differ(config, steps=1, control=False), known.workdir / "teacher", console)
    (name,) = config.teachers
    found = {}
    for arm, base in arms(config, known.workdir / "teacher" / "teachers" / name).items():
        held_out = {"train": "train[:80%]", "test": "train[80%:]"}
        tried = {}
        for rate in RATES:
            searched = differ(base, rate=f"cosine(start={rate})", seed=SEARCH_SEED, data=held_out)
            tried[rate] = accuracy(searched, known.workdir / f"{arm}-rate-{rate}", quiet)
            console.print(f"{arm}: rate {rate}: {tried[rate]:.2f} % on the held-out fifth of the training set")
        best = max(tried, key=tried.get)
        values = []
        for seed in range(known.seeds):
            final = differ(base, rate=f"cosine(start={best})", seed=seed)
            values.append(accuracy(final, known.workdir / f"{arm}-seed-{seed}", quiet))
            console.print(f"{arm}: rate {best}, seed {seed}: {values[-1]:.2f} %")
        found[arm] = {"rate": best, "search": tried, "accuracy": values}

    gain = paired(found["student"]["accuracy"], found["control"]["accuracy"])
    for arm, result in found.items():
        console.print(f"{arm}: {spread(result['accuracy'])} % at rate {result['rate']}")
    console.print(f"gain in points: {gain}")
    summary = {**found, "gain": gain.differences, "interval": [gain.low, gain.high]}
    (known.workdir / "gain.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
