"""What does SmolLM2-135M teach 11 M parameters? python -m experiments.smollm2 [--workdir DIR] [--seeds 3]

The student of configs/smollm2.py beside the same network trained on the same tokens alone, and a unigram model. On few
tokens the control is at its best long before the student is, so its rate and number of steps are searched, on tokens
that belong neither to training nor to the test. A run that was stopped goes on.
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
from jaxdistill.run.config_files import load
from jaxdistill.run.resolve import resolve

CONFIG = Path(__file__).parents[2] / "configs" / "smollm2.py"
VOCABULARY = Path("runs/smollm2/vocabulary")  # where the config looks for it
RATES, STEPS = (0.0005, 0.001), (310, 465)  # two epochs, and three
SEARCH_SEED, HELD_OUT = 100, "train[90%:92%]"

Row = dict[str, Any]


def alone(config, rate: float, steps: int):
    """The control: the same network and tokens, no teacher."""
    shorter = {"rate": f"cosine(start={rate}, warmup=0.1)", "steps": steps}
    return differ(config, teachers={}, objective=config.task.to_dict(), **shorter)


def measured(config, folder: Path) -> dict[str, Row]:
    """Trains one student, or takes over what was trained before; the rows of its table, by name."""
    return {row["name"]: row for row in jaxdistill.distill(config, folder, Console(quiet=True)).rows}


def search(config, workdir: Path, console: Console) -> list[dict[str, float]]:
    """The control's nats per token on the tokens held out for it, the best first."""
    data, found = {"test": HELD_OUT}, []
    for rate in RATES:
        for steps in STEPS:
            tried = differ(alone(config, rate, steps), data=data, seed=SEARCH_SEED)
            nll = measured(tried, workdir / f"search-{rate}-{steps}")["student"]["nll"]
            found.append({"rate": rate, "steps": steps, "nll": nll})
            console.print(f"control: rate {rate}, {steps} steps: {nll:.3f} nats on {HELD_OUT}")
    return sorted(found, key=lambda tried: tried["nll"])


def unigram(config) -> tuple[Row, dict[str, int]]:
    """The unigram model, and how many tokens it was counted on and asked."""
    data = resolve(config, jax.devices()).data
    train, test = data.open(data.streams["train"]), data.open(data.test)
    tokens = {key: int(r.take(np.arange(len(r)))["mask"].sum()) for key, r in (("train", train), ("test", test))}
    return {"name": "unigram", "nll": unigram_nll(train, test, train.vocabulary)}, tokens


def show(found: dict[str, list[Row]], console: Console) -> None:
    table = Table("model", "parameters", "nats per token", "perplexity", "accuracy %")
    for name, rows in found.items():
        nats, right = [row["nll"] for row in rows], [100 * row["accuracy"] for row in rows if "accuracy" in row]
        size = f"{rows[0]['parameters'] / 1e6:.1f} M" if "parameters" in rows[0] else "-"
        table.add_row(
            name, size, spread(nats, 3), spread([*map(math.exp, nats)], 2), spread(right, 2) if right else "-"
        )
    console.print(table)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/smollm2", type=Path)
    words.add_argument("--seeds", default=3, type=int)
    known = words.parse_args()
    console = Console()

    if not (VOCABULARY / "vocabulary.json").is_file():
        console.print(vocabulary.cut(load(f"{CONFIG}:whole"), VOCABULARY, 0))
    config = load(str(CONFIG))
    cache.write(config, console)
    logged = {"compilation_cache": str(known.workdir / "compiled")}
    config = differ(config, control=False, logging=logged)  # seeds share their programs

    tried = search(config, known.workdir, console)
    arms = {"student": config, "control": alone(config, tried[0]["rate"], tried[0]["steps"])}
    found: dict[str, list[Row]] = {arm: [] for arm in arms}
    for seed in range(known.seeds):
        for arm, chosen in arms.items():
            rows = measured(differ(chosen, seed=seed), known.workdir / f"{arm}-{seed}")
            found[arm].append(rows.pop("student"))
            found |= {name: [row] for name, row in rows.items()}  # the teacher, beside whom the student is measured
            console.print(f"{arm}, seed {seed}: {found[arm][-1]['nll']:.3f} nats per token")

    counted, tokens = unigram(config)
    found["unigram"] = [counted]
    show(found, console)
    gain = paired(*([row["nll"] for row in found[arm]] for arm in ("control", "student")))
    console.print(f"gain in nats per token: {gain}")
    summary = {"tokens": tokens, "search": tried, "models": found, "gain": gain._asdict()}
    (known.workdir / "smollm2.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
