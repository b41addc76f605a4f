"""What are peers worth, and an average of oneself? python -m experiments.peers [--workdir DIR] [--seeds 3]

Students of 500 digits: from labels alone (the control), beside peers that learn with them, beside a wider network that
learns from labels with them (co-training), and beside their own average. A run that was stopped goes on.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

import jaxdistill
from experiments.compare import paired, spread
from jaxdistill import make
from jaxdistill.config import differ

MODEL, WIDE = "mlp(widths=(128,), classes=10)", "mlp(widths=(256, 256), classes=10)"
BESIDE = {"cross_entropy": {}, "kd": {"term": "kd(temperature=1.0)"}}


def base(workdir: Path):
    return make(
        title="Peers, on 500 digits",
        steps=600,
        batch_size=50,
        student={"model": MODEL},
        objective={"cross_entropy": {}},
        control=False,
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "mnist5k", "train": "train[:500]", "augment": ("shift(pixels=2)",)},
        evaluate={"every": 600, "batch_size": 500},
        logging={"tensorboard": False, "every": 100, "compilation_cache": str(workdir / "programs")},
        mesh={"data": 1},
    )


def arms(config):
    """The configs that are compared, by name."""
    beside = lambda models, **more: differ(
        config,
        teachers={f"peer{number}": {"model": model} for number, model in enumerate(models)},
        objective=BESIDE,
        fusion="average()",
        evaluate={"layers": ()},
        **more,
    )
    return {
        "labels": config,
        "a peer": beside([MODEL], step="mutual()"),
        "a wider peer": beside([WIDE], step="mutual()"),
        "three peers": beside([MODEL, MODEL, WIDE], step="mutual()"),
        "co-training": beside([WIDE], step="mutual(terms=('cross_entropy',))"),
        "its average": beside([MODEL], step="averaged(momentum=0.98)"),
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/peers", type=Path)
    words.add_argument("--seeds", default=3, type=int)
    known = words.parse_args()
    console, quiet, found = Console(), Console(quiet=True), {}
    for arm, config in arms(base(known.workdir)).items():
        folder = known.workdir / arm.replace(" ", "-")
        runs = [jaxdistill.distill(differ(config, seed=seed), folder / str(seed), quiet) for seed in range(known.seeds)]
        names = [row["name"] for row in runs[0].rows]
        found[arm] = {name: [100 * run.rows[k]["accuracy"] for run in runs] for k, name in enumerate(names)}
        console.print(f"{arm}: {', '.join(f'{accuracy:.1f}' for accuracy in found[arm]['student'])}")

    table = Table("learns from", "student %", "over labels alone, in points", "beside it %")
    for arm, rows in found.items():
        others = "; ".join(spread(x, 1) for name, x in rows.items() if name != "student")
        gain = str(paired(rows["student"], found["labels"]["student"])) if arm != "labels" else ""
        table.add_row(arm, spread(rows["student"], 1), gain, others)
    console.print(table)
    (known.workdir / "peers.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
