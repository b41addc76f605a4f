"""Which recipe teaches best from few labels? python -m experiments.recipes [--seeds 3] [--only plain,control]

Every preset of configs/topics.py: for each seed the same data order, and the same initialisation of what is new. What
is missing is made first: the teacher, the cut vocabularies, and the caches. A run that was stopped goes on, and a
finished one is taken over.
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
from jaxdistill.run.config_files import load

CONFIG = Path(__file__).parents[2] / "configs" / "topics.py"
HOME = Path("runs/topics")  # where the config looks for teacher, vocabulary and caches
VOCABULARIES = {"used": 0, "most": 7000}
CONTROLS = {"small": "small_control"}  # of every other recipe: control
ARMS = ("plain", "control", "small", "small_control", "distilbert", "minilm", "tinybert", "all_labels")

Row = dict[str, Any]


def configured(word: str):
    """A preset; runs share their compiled programs."""
    config = load(f"{CONFIG}:{word}")
    return differ(config, logging={"compilation_cache": str(HOME / "compiled")})


def trained(config, folder: Path) -> Row:
    """Trains a network, or takes over what was trained before: its row, with its parameters beside the embedding."""
    result = jaxdistill.distill(config, folder, Console(quiet=True))
    row = next(row for row in result.rows if row["name"] == "student")
    params = result.variables["student"].params
    body = sum(x.size for name, x in params.items() if not name.startswith("embed/"))
    seconds = json.loads((folder / "results.json").read_text())["seconds"]["student"]
    return {**row, "body": body, "seconds": seconds}


def prepared(console: Console) -> Row:
    """The row of the teacher, after it, the students' vocabularies and the caches have been made."""
    config = configured("teacher")
    row = trained(config, HOME / "teacher")
    console.print(f"teacher: {100 * row['accuracy']:.2f} %, {row['seconds']:.0f} s")
    whole = differ(config, data={"train": "train"})
    for name, most in VOCABULARIES.items():
        if not (HOME / name / "vocabulary.json").is_file():
            console.print(vocabulary.cut(whole, HOME / name, most))
    for word in ("distilbert", "small"):
        cache.write(configured(word), console)
    return row


def summary(teacher: Row, rows: dict[str, list[Row]]) -> dict[str, Row]:
    """Of each arm: accuracy by seed, its share of the teacher's, sizes, and the gain over its control."""
    right = {arm: [100 * row["accuracy"] for row in found] for arm, found in rows.items()}
    told: dict[str, Row] = {}
    for arm, values in right.items():
        sizes = {size: 100 * rows[arm][0][size] / teacher[size] for size in ("parameters", "body")}
        seconds = float(np.mean([row["seconds"] for row in rows[arm]]))
        told[arm] = {"accuracy": values, "kept": float(np.mean(values) / teacher["accuracy"]), **sizes, "s": seconds}
        other = CONTROLS.get(arm, "control")
        if "control" not in arm and other in right:
            told[arm]["gain"] = paired(values, right[other])._asdict()
    return told


def show(teacher: Row, told: dict[str, Row], console: Console) -> None:
    """A table in Markdown, to be pasted."""
    lines = [("learns by", "accuracy %", "% of the teacher's", "over its control", "% of parameters", "% of the body")]
    lines.append(("---",) * 6)
    lines.append(("teacher", f"{100 * teacher['accuracy']:.2f}", "100", "", "100", "100"))
    for arm, row in told.items():
        several = len(row["accuracy"]) > 1
        form = "{mean:+.2f} ({low:.2f} to {high:.2f})" if several else "{mean:+.2f} (one seed)"
        gain = form.format(**row["gain"]) if "gain" in row else ""
        kept, size, body = (f"{row[share]:.1f}" for share in ("kept", "parameters", "body"))
        lines.append((arm, spread(row["accuracy"]), kept, gain, size, body))
    console.print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--seeds", default=3, type=int)
    words.add_argument("--only", default=",".join(ARMS), help="presets, with commas between them")
    known = words.parse_args()
    console = Console(width=200)

    teacher = prepared(console)
    rows: dict[str, list[Row]] = {arm: [] for arm in known.only.split(",")}
    for seed in range(known.seeds):  # of all arms, so that what was stopped is a smaller study
        for arm, found in rows.items():
            found.append(trained(differ(configured(arm), seed=seed), HOME / "runs" / f"{arm}-{seed}"))
            console.print(f"{arm}, seed {seed}: {100 * found[-1]['accuracy']:.2f} %, {found[-1]['seconds']:.0f} s")
    told = summary(teacher, rows)
    show(teacher, told, console)
    (HOME / "results.json").write_text(json.dumps({"teacher": teacher, "runs": rows, "summary": told}, indent=1))


if __name__ == "__main__":
    main()
