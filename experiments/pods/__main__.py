"""Plan language models on TPU pods: python -m experiments.pods [--workdir DIR] [--only qwen3]

Compiles the presets of configs/pods.py for slices of v5p and v6e with `jaxdistill plan`, which needs the extra tpu and
no TPU; minutes each on 2 cores. Earlier plans are read from the workdir.
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
    """A preset on a topology, with a row of 4,096 tokens for each chip."""

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
    """Format a row of the table."""
    return "| " + " | ".join(words) + " |"


def planned(row: Row, workdir: Path) -> dict[str, Any]:
    """Read the numbers of a plan from the workdir, and make the plan first if it is missing."""
    file = workdir / f"{row.preset} {row.topology}.json"
    if not file.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        size = [f"--config.batch_size={row.rows}", f"--config.evaluate.batch_size={row.rows}"]
        arguments = ["--config", f"{PODS}:{row.preset}", "--topology", row.topology, "--json", str(file), *size]
        subprocess.run([sys.executable, "-m", "jaxdistill.main", "plan", *arguments], check=False)
    return json.loads(file.read_text())


def line(row: Row, plan: dict[str, Any]) -> str:
    """Format a plan as a row of the table; sizes are GiB on each chip."""
    held, gib = plan["held"], lambda size: f"{size / GIB:.1f}"
    sizes = [gib(held["teacher large"]), gib(held["student"] + held["optimiser"])]
    costs = ["", "", "", ""]
    if plan["fits"]:
        bounds, sent = plan["bounds"], sum(each["bytes"] for each in plan["device"]["collectives"].values())
        costs = [gib(plan["temporaries"]), gib(sent), f"{bounds['products']:.2f}", f"{bounds['links']:.2f}"]
    answer = "yes" if plan["fits"] else f"no: {plan['why']}"
    return cells(row.preset, row.topology, answer, *sizes, *costs, f"{plan['seconds']['of the processors']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/pods", type=Path)
    parser.add_argument("--only", default="", help="only rows whose preset or topology contains this")
    args = parser.parse_args()
    print(cells(*HEAD) + "\n" + "|---" * len(HEAD) + "|", flush=True)
    for row in ROWS:
        if args.only in f"{row.preset} {row.topology}":
            print(line(row, planned(row, args.workdir)), flush=True)


if __name__ == "__main__":
    main()
