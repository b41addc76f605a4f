"""Compare distillation recipes with few labels: python -m experiments.recipes [--seeds 3] [--only plain,control]

Runs every preset of configs/topics.py, for each seed with the same data order and the same initialisation of new
parameters. The teacher, the cut vocabularies and the caches are made first if they are missing. A run that was stopped
resumes, and finished runs are not repeated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import jaxdistill
from jaxdistill.evaluation.comparison import paired, spread
from jaxdistill.run.commands import cache, vocabulary
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "topics.py"
HOME = Path("runs/topics")  # the config expects teacher, vocabulary and caches here
VOCABULARIES = {"used": 0, "most": 7000}
CONTROLS = {"small": "small_control"}  # of all other recipes: "control"
ARMS = ("plain", "control", "small", "small_control", "distilbert", "minilm", "tinybert", "all_labels")

Row = dict[str, Any]


def load_preset(word: str, every: int):
    """Load a preset; all runs share their compiled programs.

    Args:
        word: name of the preset.
        every: steps between two evaluations, each with a checkpoint; 0: as the preset says.
    """
    config = load_config(f"{CONFIG}:{word}")
    config = differ(config, logging={"compilation_cache": str(HOME / "compiled")})
    return differ(config, evaluate={"every": every}) if every else config


def train(config, folder: Path) -> Row:
    """Train a network unless it is trained already, and return its row, with its parameters outside the embedding."""
    result = jaxdistill.distill(config, folder, Console(quiet=True))
    row = next(row for row in result.rows if row["name"] == "student")
    params = result.variables["student"].params
    body = sum(x.size for name, x in params.items() if not name.startswith("embed/"))
    seconds = json.loads((folder / "results.json").read_text())["seconds"]["student"]
    return {**row, "body": body, "seconds": seconds}


def prepare(every: int, console: Console) -> Row:
    """Make the teacher, the students' vocabularies and the caches, and return the teacher's row."""
    config = load_preset("teacher", every)
    row = train(config, HOME / "teacher")
    console.print(f"teacher: {100 * row['accuracy']:.2f} %, {row['seconds']:.0f} s")
    all_texts = differ(config, data={"train": "train"})
    for name, most in VOCABULARIES.items():
        if not (HOME / name / "vocabulary.json").is_file():
            console.print(vocabulary.reduce_vocabulary(all_texts, HOME / name, most))
    for word in ("distilbert", "small"):
        cache.write(load_preset(word, every), console)
    return row


def summary(teacher: Row, rows: dict[str, list[Row]]) -> dict[str, Row]:
    """Return for each arm its accuracy by seed, its share of the teacher's, its sizes and its gain over the control."""
    accuracies = {arm: [100 * row["accuracy"] for row in arm_rows] for arm, arm_rows in rows.items()}
    summaries: dict[str, Row] = {}
    for arm, values in accuracies.items():
        sizes = {size: 100 * rows[arm][0][size] / teacher[size] for size in ("parameters", "body")}
        seconds = float(np.mean([row["seconds"] for row in rows[arm]]))
        kept = float(np.mean(values) / teacher["accuracy"])
        summaries[arm] = {"accuracy": values, "kept": kept, **sizes, "s": seconds}
        other = CONTROLS.get(arm, "control")
        if "control" not in arm and other in accuracies:
            summaries[arm]["gain"] = paired(values, accuracies[other])._asdict()
    return summaries


def show(teacher: Row, summaries: dict[str, Row], console: Console) -> None:
    """Print the table in Markdown."""
    lines = [("learns by", "accuracy %", "% of the teacher's", "over its control", "% of parameters", "% of the body")]
    lines.append(("---",) * 6)
    lines.append(("teacher", f"{100 * teacher['accuracy']:.2f}", "100", "", "100", "100"))
    for arm, row in summaries.items():
        several = len(row["accuracy"]) > 1
        form = "{mean:+.2f} ({low:.2f} to {high:.2f})" if several else "{mean:+.2f} (one seed)"
        gain = form.format(**row["gain"]) if "gain" in row else ""
        kept, size, body = (f"{row[share]:.1f}" for share in ("kept", "parameters", "body"))
        lines.append((arm, spread(row["accuracy"]), kept, gain, size, body))
    console.print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--only", default=",".join(ARMS), help="comma-separated presets")
    parser.add_argument("--every", default=0, type=int, help="steps between checkpoints; 0: only the last step has one")
    args = parser.parse_args()
    console = Console(width=200)

    teacher = prepare(args.every, console)
    rows: dict[str, list[Row]] = {arm: [] for arm in args.only.split(",")}
    for seed in range(args.seeds):  # all arms of a seed first, so that a stopped study is a smaller study
        for arm, arm_rows in rows.items():
            arm_rows.append(train(differ(load_preset(arm, args.every), seed=seed), HOME / "runs" / f"{arm}-{seed}"))
            console.print(
                f"{arm}, seed {seed}: {100 * arm_rows[-1]['accuracy']:.2f} %, {arm_rows[-1]['seconds']:.0f} s"
            )
    summaries = summary(teacher, rows)
    show(teacher, summaries, console)
    (HOME / "results.json").write_text(json.dumps({"teacher": teacher, "runs": rows, "summary": summaries}, indent=1))


if __name__ == "__main__":
    main()
