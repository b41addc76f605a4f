"""Which recipe teaches best from few labels? python -m experiments.recipes [--seeds 3] [--only plain,control]

Every preset of configs/topics.py: for each seed the same data order, and the same initialisation of what is new. What
is missing is made first: the teacher, the cut vocabulary, and the caches. A run that was stopped goes on, and a
finished one is taken over.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

import jaxdistill
from jaxdistill import cache, vocabulary
from jaxdistill.config import differ, load

CONFIG = Path(__file__).parents[2] / "configs" / "topics.py"
HOME = Path("runs/topics")  # where the config looks for teacher, vocabulary and caches
CONTROLS = {"small": "small_control"}  # of every other recipe: control
ARMS = ("plain", "control", "small", "small_control", "distilbert", "minilm", "tinybert", "all_labels")

Row = dict[str, Any]


def configured(word: str):
    """A preset; runs share their compiled programs."""
    config = load(f"{CONFIG}:{word}")
    return differ(config, logging={**config.logging.to_dict(), "compilation_cache": str(HOME / "compiled")})


def trained(config, folder: Path) -> Row:
    """Trains a network, or takes over what was trained before: its row, with its parameters beside the embedding."""
    result = jaxdistill.distill(config, folder, Console(quiet=True))
    row = next(row for row in result.rows if row["name"] == "student")
    params = result.variables["student"].params
    body = sum(x.size for name, x in params.items() if not name.startswith("embed/"))
    seconds = json.loads((folder / "results.json").read_text())["seconds"]["student"]
    return {**row, "body": body, "seconds": seconds}


def prepared(console: Console) -> Row:
    """The row of the teacher, after it, the cut vocabulary and the caches have been made."""
    row = trained(configured("teacher"), HOME / "teacher")
    console.print(f"teacher: {100 * row['accuracy']:.2f} %, {row['seconds']:.0f} s")
    if not (HOME / "vocabulary" / "vocabulary.json").is_file():
        console.print(vocabulary.cut(configured("plain"), HOME / "vocabulary", 5000))
    for word in ("distilbert", "small"):
        cache.write(configured(word), console)
    return row


def interval(values: np.ndarray) -> list[float]:
    """Of the mean, 95 %, by Student's t."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return [float(low), float(high)]


def summary(teacher: Row, rows: dict[str, list[Row]]) -> dict[str, Row]:
    """Of each arm: mean, spread, share of the teacher's accuracy and size, and gain over its control, seed by seed."""
    right = {arm: 100 * np.array([row["accuracy"] for row in found]) for arm, found in rows.items()}
    told: dict[str, Row] = {}
    for arm, values in right.items():
        one = rows[arm][0]
        told[arm] = {
            "accuracy": float(values.mean()),
            "spread": float(values.std(ddof=1)),
            "kept": float(values.mean() / (100 * teacher["accuracy"])),
            "parameters": one["parameters"] / teacher["parameters"],
            "body": one["body"] / teacher["body"],
            "seconds": float(np.mean([row["seconds"] for row in rows[arm]])),
        }
        other = right.get(CONTROLS.get(arm, "control"))
        if "control" not in arm and other is not None:
            gain = values - other
            told[arm] |= {"gain": float(gain.mean()), "interval": interval(gain)}
    return told


def show(teacher: Row, told: dict[str, Row], console: Console) -> None:
    """A table in Markdown, to be pasted."""
    heads = (
        "learns by",
        "accuracy %",
        "of the teacher's %",
        "over its control",
        "parameters %",
        "beside embedding %",
        "s",
    )
    lines = [("teacher", f"{100 * teacher['accuracy']:.2f}", "100", "", "100", "100", f"{teacher['seconds']:.0f}")]
    for arm, row in told.items():
        gain = "{:+.2f} ({:.2f} to {:.2f})".format(row["gain"], *row["interval"]) if "gain" in row else ""
        share = f"{100 * row['parameters']:.1f}", f"{100 * row['body']:.1f}"
        accuracy = f"{row['accuracy']:.2f} +- {row['spread']:.2f}"
        lines.append((arm, accuracy, f"{100 * row['kept']:.1f}", gain, *share, f"{row['seconds']:.0f}"))
    console.print("\n".join("| " + " | ".join(line) + " |" for line in (heads, ("---",) * len(heads), *lines)))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--seeds", default=3, type=int)
    words.add_argument("--only", default=",".join(ARMS), help="presets, with commas between them")
    known = words.parse_args()
    console = Console(width=200)

    teacher = prepared(console)
    rows: dict[str, list[Row]] = {}
    for arm in known.only.split(","):
        rows[arm] = []
        for seed in range(known.seeds):
            rows[arm].append(trained(differ(configured(arm), seed=seed), HOME / "runs" / f"{arm}-{seed}"))
            console.print(f"{arm}, seed {seed}: {100 * rows[arm][-1]['accuracy']:.2f} %")
    told = summary(teacher, rows)
    show(teacher, told, console)
    found = {"teacher": teacher, "runs": rows, "summary": told}
    (HOME / "results.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
