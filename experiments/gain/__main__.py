"""What is distillation worth? python -m experiments.gain [--workdir DIR] [--seeds 5]

The quickstart's student and its control, which learns from labels alone: for each seed the same initialisation, data
order and steps. Each arm's learning rate is searched on a fifth of the training set, with a seed of its own. A run that
was stopped goes on.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy import stats

import jaxdistill
from jaxdistill.config import differ

RATES = (0.001, 0.003, 0.01)
SEARCH_SEED = 100
TASK = {"cross_entropy": {}}


def quickstart():
    """The config of the repository's quickstart."""
    file = Path(__file__).parents[2] / "configs" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


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

    config = quickstart()
    console.print("training the teacher")
    jaxdistill.distill(differ(config, steps=1, control=False), known.workdir / "teacher", console)
    (name,) = config.teachers
    found = {}
    for arm, base in arms(config, known.workdir / "teacher" / "teachers" / name).items():
        held_out = {**base.data.to_dict(), "train": "train[:80%]", "test": "train[80%:]"}
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

    gain = np.subtract(found["student"]["accuracy"], found["control"]["accuracy"])
    low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain))
    for arm, result in found.items():
        mean, spread = np.mean(result["accuracy"]), np.std(result["accuracy"], ddof=1)
        console.print(f"{arm}: {mean:.2f} +- {spread:.2f} % at rate {result['rate']}")
    console.print(f"gain: {gain.mean():.2f} points, 95 % interval {low:.2f} to {high:.2f} (paired, {len(gain)} seeds)")
    summary = {**found, "gain": gain.tolist(), "interval": [low, high]}
    (known.workdir / "gain.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
