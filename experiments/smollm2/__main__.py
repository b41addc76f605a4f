"""Distil SmolLM2-135M into 11 M parameters: python -m experiments.smollm2 [--workdir DIR] [--seeds 3]

Compares the student of configs/smollm2.py with its control, the same network trained on the same tokens alone, and with
a unigram model. On few tokens the control is at its best long before the student, so its rate and number of steps are
searched, on tokens that are neither in the training set nor in the test set. A run that was stopped resumes.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxdistill
from jaxdistill.data.text.unigram import unigram_nll
from jaxdistill.evaluation.comparison import paired, spread
from jaxdistill.run.commands import cache, vocabulary
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.resolve import resolve

CONFIG = Path(__file__).parents[2] / "configs" / "smollm2.py"
VOCABULARY = Path("runs/smollm2/vocabulary")  # the config expects it here
RATES, STEPS = (0.0005, 0.001), (310, 465)  # two epochs, and three
SEARCH_SEED, HELD_OUT = 100, "train[90%:92%]"

Row = dict[str, Any]


def control_config(config, rate: float, steps: int):
    """Make the config of the control: the same network and tokens, no teacher."""
    shorter = {"rate": f"cosine(start={rate}, warmup=0.1)", "steps": steps}
    return differ(config, teachers={}, objective=config.task.to_dict(), **shorter)


def train_student(config, folder: Path) -> dict[str, Row]:
    """Train one student unless it is trained already, and return the rows of its table by name."""
    return {row["name"]: row for row in jaxdistill.distill(config, folder, Console(quiet=True)).rows}


def search(config, workdir: Path, console: Console) -> list[dict[str, float]]:
    """Search the control's rate and steps; return its nats per token on the held-out tokens, best first."""
    data, results = {"test": HELD_OUT}, []
    for rate in RATES:
        for steps in STEPS:
            candidate = differ(control_config(config, rate, steps), data=data, seed=SEARCH_SEED)
            nll = train_student(candidate, workdir / f"search-{rate}-{steps}")["student"]["nll"]
            results.append({"rate": rate, "steps": steps, "nll": nll})
            console.print(f"control: rate {rate}, {steps} steps: {nll:.3f} nats on {HELD_OUT}")
    return sorted(results, key=lambda candidate: candidate["nll"])


def unigram(config) -> tuple[Row, dict[str, int]]:
    """Evaluate the unigram model, and count the tokens of the training and test sets."""
    data = resolve(config, jax.devices()).data
    train, test = data.open(data.streams["train"]), data.open(data.test)
    tokens = {key: int(r.take(np.arange(len(r)))["mask"].sum()) for key, r in (("train", train), ("test", test))}
    return {"name": "unigram", "nll": unigram_nll(train, test, train.vocabulary)}, tokens


def show(rows_by_model: dict[str, list[Row]], console: Console) -> None:
    table = Table("model", "parameters", "nats per token", "perplexity", "accuracy %")
    for name, rows in rows_by_model.items():
        nats, right = [row["nll"] for row in rows], [100 * row["accuracy"] for row in rows if "accuracy" in row]
        size = f"{rows[0]['parameters'] / 1e6:.1f} M" if "parameters" in rows[0] else "-"
        table.add_row(
            name, size, spread(nats, 3), spread([*map(math.exp, nats)], 2), spread(right, 2) if right else "-"
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/smollm2", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    args = parser.parse_args()
    console = Console()

    if not (VOCABULARY / "vocabulary.json").is_file():
        console.print(vocabulary.reduce_vocabulary(load_config(f"{CONFIG}:whole"), VOCABULARY, 0))
    config = load_config(str(CONFIG))
    cache.write(config, console)
    logging = {"compilation_cache": str(args.workdir / "compiled")}
    config = differ(config, control=False, logging=logging)  # seeds share their programs

    candidates = search(config, args.workdir, console)
    arms = {"student": config, "control": control_config(config, candidates[0]["rate"], candidates[0]["steps"])}
    rows_by_model: dict[str, list[Row]] = {arm: [] for arm in arms}
    for seed in range(args.seeds):
        for arm, chosen in arms.items():
            rows = train_student(differ(chosen, seed=seed), args.workdir / f"{arm}-{seed}")
            rows_by_model[arm].append(rows.pop("student"))
            rows_by_model |= {name: [row] for name, row in rows.items()}  # the teacher
            console.print(f"{arm}, seed {seed}: {rows_by_model[arm][-1]['nll']:.3f} nats per token")

    unigram_row, tokens = unigram(config)
    rows_by_model["unigram"] = [unigram_row]
    show(rows_by_model, console)
    gain = paired(*([row["nll"] for row in rows_by_model[arm]] for arm in ("control", "student")))
    console.print(f"gain in nats per token: {gain}")
    summary = {"tokens": tokens, "search": candidates, "models": rows_by_model, "gain": gain._asdict()}
    (args.workdir / "smollm2.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
