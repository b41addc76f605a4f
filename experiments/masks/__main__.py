"""Study zeros in the weights of a perceptron: python -m experiments.masks [--workdir DIR] [--seeds 5]

A perceptron that was trained on digits learns from its own answers while ever more of its weights are set to zero: by
magnitude, by Wanda (times the size of their inputs), or all but 2 of 4. Beside it the same weights after training is
over, and a broken twin, whose weights are chosen at random. A run that was stopped resumes.
"""

import gzip
import sys
from pathlib import Path

import jax
from rich.console import Console

from jaxdistill.compress.masks import Pruner, Settings, pruner
from jaxdistill.core.registry import masks
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ, make
from jaxdistill.run.study import Study

MODEL = "mlp(widths=(128,), classes=10)"
SHARES = (0.5, 0.8, 0.9, 0.95)


class Random(Settings):
    """The settings of `sparse`, but the scores are drawn once for each kernel."""

    def chosen(self, score, share):
        return super().chosen(jax.random.uniform(jax.random.key(score.size), score.shape), share)


@masks.register
def random(share: float) -> Pruner:
    """Set weights to zero that are chosen at random: a broken twin."""
    return pruner(Random(share, 0, 0, False, 0.0, 0.5, 10, "kernel$"))


def arm(spec: str, **changes):
    """Return the changes for a student whose weights are set to zero."""
    student = {"model": "cut(teacher='floats')", "masks": spec}
    return {"teachers": {"floats": {"model": MODEL}}, "student": student, "objective": {"kd": {}}, **changes}


BASE = make(
    title="Zeros: digits",
    steps=1500,
    student={"model": MODEL},
    objective={"cross_entropy": {}},
    control=False,
    optimizer="adamw()",
    rate="cosine(start=0.001)",
    data={"name": "mnist5k"},
    evaluate={"every": 1500, "layers": ()},
    logging={"tensorboard": False, "every": 100},
    mesh={"data": 1},
)
ONCE = {"steps": 1, "rate": "0.0"}
ARMS = {
    "floats": arm("", **ONCE),
    **{f"{100 * share:g} % by magnitude": arm(f"sparse(share={share}, start=0.0, end=0.5)") for share in SHARES},
    **{
        f"{100 * share:g} % by Wanda": arm(f"sparse(share={share}, by='wanda', start=0.0, end=0.5)")
        for share in SHARES[1:]
    },
    "2 of 4": arm("sparse(keep=2, of=4, start=0.0)"),
    **{
        f"{100 * share:g} % by magnitude, afterwards": arm(f"sparse(share={share}, start=0.0, end=0.0)", **ONCE)
        for share in SHARES[1:]
    },
    **{f"{100 * share:g} % at random (twin)": arm(f"random(share={share})") for share in SHARES[1:]},
}

STUDY = Study(
    name="masks",
    question="How many weights of a perceptron can be zero, and which?",
    base=BASE,
    axes={"arm": ARMS},
    baseline="floats",
    teachers={"floats": differ(BASE, seed=100, rate="cosine(start=0.003)")},
    measures=(ACCURACY._replace(digits=1), Measure("latency_ms", "ms", digits=3)),
)


def sizes(workdir: Path) -> None:
    """Print how many bytes the weights of each arm take, and how many after compression by gzip."""
    console = Console()
    for folder in sorted(workdir.glob("*/0/student/hub")):
        content = b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))
        packed = len(gzip.compress(content, mtime=0))
        console.print(f"{folder.parts[-4]}: {len(content):,} bytes, {packed:,} compressed", highlight=False)


def main() -> None:
    options = sweep.parser(STUDY.name, __doc__).parse_args()

    def work() -> None:
        sweep.execute(STUDY, options)
        sizes(options.workdir)

    sys.exit(sweep.guarded(work, options.debug, options.workdir, bool(options.run)))


if __name__ == "__main__":
    main()
