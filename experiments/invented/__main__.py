"""Study invented images: python -m experiments.invented [--workdir DIR] [--seeds 3]

From 40 of 4,000 digits, 100,000 images are invented by `warp()` and `cutmix()`, and the teacher labels them. All arms
take 1,000 steps of 100 images. Beside them: the 40 digits alone, with the teacher and with their labels; the invented
images with the labels of the generator; the teacher's answers given to other images; and the labels of 1, 5, 10, 20 and
50 times as many real digits, from which is read how many real labels the invented images are worth.

Decided before the first run: mnist5k, its 1,000 test digits, 3 seeds; no learning rate is searched. Expected: at least
15 points above the 40 digits with their labels, at least as good as 400 real labels, the generator's labels at least 8
points below. The teacher was trained on all real digits: the claim is about what a student needs. A study that was
stopped resumes.
"""

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.evaluation.comparison import mean_and_interval, paired
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.losses.logits.kd import kd
from jaxdistill.losses.term import stateless
from jaxdistill.run.config import Config, differ, make
from jaxdistill.run.study import run_or_resume

REAL, ALL = 40, 4000
TIMES = (1, 5, 10, 20, 50)
INVENTED = ("warp()", "cutmix(alpha=1.0, classes=10)")
KD = {"kd": {"term": "kd(temperature=4.0)"}}
TEACHER = "invented images, teacher"
GENERATOR, OTHERS = "invented images, labels of the generator", "invented images, answers for others (twin)"
ALONE = "40 digits, teacher"
WARPED = "40 digits warped, their labels"


@losses.register
def others() -> Term:
    """Build `kd` to a teacher whose answers are those for the next image of the batch: a broken twin."""
    term = kd(4.0)

    def values(signals: Signals) -> Array:
        teacher = replace(signals.teacher, logits=jnp.roll(signals.teacher.logits, 1, axis=0))
        return term.apply({}, {}, replace(signals, teacher=teacher), key=jax.random.key(0))[0]

    return stateless(values, local=False, needs=term.needs, temperature=term.temperature)


def base() -> Config:
    return make(
        title="Invented images: digits",
        steps=1000,
        batch_size=100,
        student={"model": "mlp(widths=(128,), classes=10)"},
        objective={"cross_entropy": {}},
        control=False,
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "mnist5k"},
        evaluate={"every": 1000, "batch_size": 500, "layers": ()},
        logging={"tensorboard": False, "every": 100},
        mesh={"data": 1},
    )


def arms(teacher: Path) -> dict[str, Config]:
    """Return the config of each arm."""

    def of(count: int, augment: Sequence[str] = (), **changes) -> Config:
        return differ(base(), data={"select": f"random(share={count / ALL})", "augment": tuple(augment)}, **changes)

    taught = {"teachers": {"wide": {"model": "mlp(widths=(512, 512), classes=10)", "checkpoint": str(teacher)}}}
    own = {"objective": {"cross_entropy": {"term": "cross_entropy(target='label_probs')"}}}
    return {
        TEACHER: of(REAL, INVENTED, **taught, objective=KD),
        GENERATOR: of(REAL, INVENTED, **own),
        OTHERS: of(REAL, INVENTED, **taught, objective={"others": {}}),
        WARPED: of(REAL, INVENTED[:1]),
        ALONE: of(REAL, **taught, objective=KD),
        **{labels(count): of(count) for count in (REAL * times for times in TIMES)},
    }


def labels(count: int) -> str:
    """Return the name of the arm with the labels of `count` real digits."""
    return f"{count:,} digits, labels"


def worth(accuracy: float, curve: Sequence[float]) -> str:
    """Return how many real labels give an accuracy, between two points of the learning curve on a logarithmic scale.

    Args:
        accuracy: an accuracy.
        curve: accuracy for `REAL * times` real labels, for each of `TIMES`.
    """
    counts = [REAL * times for times in TIMES]
    if accuracy < curve[0]:
        return f"fewer than {counts[0]}"
    for (one, low), (other, high) in itertools.pairwise(zip(counts, curve, strict=True)):
        if low <= accuracy <= high and low < high:
            share = (accuracy - low) / (high - low)
            return f"{math.exp(math.log(one) + share * math.log(other / one)):,.0f}"
    return f"more than {counts[-1]:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/invented", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    args = parser.parse_args()
    console, teacher = Console(), args.workdir / "teacher"
    network = {"model": "mlp(widths=(512, 512), classes=10)"}
    (row,) = run_or_resume(
        differ(base(), seed=100, steps=1500, student=network, data={"augment": ("shift(pixels=2)",)}), teacher
    )
    console.print(f"teacher: {100 * row['accuracy']:.1f} %")
    found: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        for number, (arm, config) in enumerate(arms(teacher).items()):
            rows = run_or_resume(differ(config, seed=seed), args.workdir / f"arm-{number}" / str(seed))
            found.setdefault(arm, []).append(100 * rows[-1]["accuracy"])
            console.print(f"seed {seed}, {arm}: {found[arm][-1]:.1f} %")
    curve = [float(np.mean(found[labels(REAL * times)])) for times in TIMES]
    lines = [[arm, mean_and_interval(values), worth(float(np.mean(values)), curve)] for arm, values in found.items()]
    console.print(aligned([["", "accuracy %", "worth real labels"], *lines]), highlight=False, soft_wrap=True)
    for other in (labels(REAL), labels(10 * REAL), GENERATOR):
        console.print(f"{TEACHER} - {other}: {paired(found[TEACHER], found[other])}")
    (args.workdir / "invented.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
