"""What fits on which pod? python -m experiments.pods [--workdir DIR] [--only qwen3]

The presets of configs/pods.py, compiled for slices of v5p and v6e by jaxdistill.plan, which needs the extra tpu and no
TPU; minutes each on 2 cores. What is planned already is read from the workdir.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.run.plan.summary import GIB

PODS = Path(__file__).parents[2] / "configs" / "pods.py"


class Row(NamedTuple):
    """A preset on a topology, a row of 4,096 tokens for each chip."""

    preset: str
    topology: str
    rows: int


ROWS = (
    Row("qwen3", "v6e:8x8", 64),
    Row("qwen3", "v6e:16x16", 256),
    Row("qwen3", "v5p:4x4x4", 64),
    Row("llama405", "v6e:8x8", 64),
    Row("llama405", "v6e:16x16", 256),
    Row("llama405", "v5p:4x4x4", 64),
    Row("llama405", "v5p:4x8x8", 256),
)
HEAD = (
    *("preset", "slice", "fits", "teacher", "student, optimiser", "temporaries"),
    *("a chip sends", "products, s", "links, s", "processor, s"),
)


def cells(*words: str) -> str:
    """A row of the table."""
    return "| " + " | ".join(words) + " |"


def planned(row: Row, workdir: Path) -> dict[str, Any]:
    """The numbers of a plan, from the workdir where they are there."""
    file = workdir / f"{row.preset} {row.topology}.json"
    if not file.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        size = [f"--config.batch_size={row.rows}", f"--config.evaluate.batch_size={row.rows}"]
        words = ["--config", f"{PODS}:{row.preset}", "--topology", row.topology, "--json", str(file), *size]
        subprocess.run([sys.executable, "-m", "jaxdistill.plan", *words], check=False)
    return json.loads(file.read_text())


def line(row: Row, plan: dict[str, Any]) -> str:
    """What is told of a plan; GiB on each chip."""
    held, gib = plan["held"], lambda size: f"{size / GIB:.1f}"
    found = [gib(held["teacher large"]), gib(held["student"] + held["optimiser"])]
    rest = ["", "", "", ""]
    if plan["fits"]:
        bounds, sent = plan["bounds"], sum(each["bytes"] for each in plan["device"]["collectives"].values())
        rest = [gib(plan["temporaries"]), gib(sent), f"{bounds['products']:.2f}", f"{bounds['links']:.2f}"]
    answer = "yes" if plan["fits"] else f"no: {plan['why']}"
    return cells(row.preset, row.topology, answer, *found, *rest, f"{plan['seconds']['of the processors']:.0f}")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/pods", type=Path)
    words.add_argument("--only", default="", help="rows whose preset or topology contains this")
    known = words.parse_args()
    print(cells(*HEAD) + "\n" + "|---" * len(HEAD) + "|", flush=True)
    for row in ROWS:
        if known.only in f"{row.preset} {row.topology}":
            print(line(row, planned(row, known.workdir)), flush=True)


if __name__ == "__main__":
    main()
