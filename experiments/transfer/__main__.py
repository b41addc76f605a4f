"""Study what is transferred: python -m experiments.transfer [--workdir DIR] [--seeds 3]

Students of about one accuracy, on digits: one learns from a teacher at temperature 4, one at 1, one from the same
teacher shuffled within its classes (a twin), one from another teacher, one from labels. How many bits of the teacher,
beyond the labels and three other label-trained networks, has each of them, beside a network that was not trained?

Decided before the first run: 3 seeds, the test split of mnist5k (1,000 digits). Expected: kd at 4 at least 5 times the
bits of labels; beyond another teacher's student at least 1.8 times that one's own; shuffled at most 0.35 of kd; labels
within the floor. A run that was stopped resumes.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.evaluation.comparison import mean_and_interval
from jaxdistill.evaluation.interpret.bits import bits_beyond
from jaxdistill.evaluation.report.formats import aligned
from jaxdistill.losses.logits.kd import kd
from jaxdistill.losses.term import stateless
from jaxdistill.run.config import differ, make
from jaxdistill.run.explain import outputs_of, untrained
from jaxdistill.run.study import quality_text, run_or_resume

TEACHER = {"model": "resnet(widths=(16, 32, 64, 128), blocks=1, classes=10)"}
KNOWN = (101, 102, 103)  # seeds of the label-trained networks that are known
LABELS = {"teachers": {}, "objective": {"cross_entropy": {}}}


@losses.register
def shuffled(temperature: float) -> Term:
    """Build `kd` to a teacher whose answers are those of the next record of the same class: a broken twin."""
    term = kd(temperature)

    def values(signals: Signals) -> Array:
        label = signals.batch["label"]
        rows = jnp.arange(len(label))
        steps = (rows - rows[:, None] - 1) % len(label)  # to the next record, and last to itself
        chosen = jnp.argmin(jnp.where(label == label[:, None], steps, len(label)), axis=1)
        teacher = replace(signals.teacher, logits=signals.teacher.logits[chosen])
        return term.apply({}, {}, replace(signals, teacher=teacher), key=jax.random.key(0))[0]

    return stateless(values, needs=term.needs, temperature=term.temperature)


def base(**changes):
    """Return the config of a student of digits, with some changes."""
    config = make(
        title="What is transferred: digits",
        steps=1000,
        student={"model": "mlp(widths=(128,), classes=10)"},
        objective={"cross_entropy": {}},
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "mnist5k"},
        control=False,
        evaluate={"every": 1000, "layers": ()},
        logging={"tensorboard": False, "every": 100},
        mesh={"data": 1},
    )
    return differ(config, **changes)


def arms(workdir: Path):
    """Return the changes of each arm: what its student learns from."""
    of = lambda name: {"big": {**TEACHER, "checkpoint": str(workdir / name)}}
    learns = lambda term, name="first": {"teachers": of(name), "objective": {"kd": {"term": term}}}
    return {
        "kd, T = 4": {**learns("kd(temperature=4.0)"), "control": True},
        "kd, T = 1": learns("kd(temperature=1.0)"),
        "shuffled in classes, T = 4 (twin)": learns("shuffled(temperature=4.0)"),
        "another teacher, T = 4": learns("kd(temperature=4.0)", "second"),
    }


def bits_of_seed(seed: int, seeds: range, folder: Callable[[str, int], Path], workdir: Path) -> dict[str, float]:
    """Return the bits of the first teacher that each network of a seed has."""
    logits = lambda arm, number=seed, model="student": outputs_of(folder(arm, number), model).logits
    kd_arm, twin, other = "kd, T = 4", "shuffled in classes, T = 4 (twin)", "another teacher, T = 4"
    known = [outputs_of(workdir / f"labels-{number}").logits for number in KNOWN]
    beyond = [*known, *(logits(other, number) for number in seeds if number != seed)]
    teacher = outputs_of(workdir / "first")
    of = lambda logits, known=known: bits_beyond(teacher.logits, logits, known, teacher.labels).total
    return {
        kd_arm: of(logits(kd_arm)),
        "kd, T = 1": of(logits("kd, T = 1")),
        twin: of(logits(twin)),
        other: of(logits(other)),
        "labels": of(logits(kd_arm, model="control")),
        "untrained (floor)": of(untrained(folder(kd_arm, seed)).logits),
        f"{kd_arm}, beyond students of the other teacher": of(logits(kd_arm), beyond),
        "another teacher's student, beyond other students of it": of(logits(other), beyond),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/transfer", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    args = parser.parse_args()
    console, seeds = Console(), range(args.seeds)
    folder = lambda arm, seed: args.workdir / re.sub(r"\W+", "-", arm) / str(seed)

    for name, seed in (("first", 100), ("second", 200)):
        config = base(student=TEACHER, seed=seed, steps=400, rate="cosine(start=0.005)")
        rows = run_or_resume(config, args.workdir / name)
        console.print(f"teacher {name}: {quality_text(rows[-1])}")
    for seed in KNOWN:
        run_or_resume(base(seed=seed), args.workdir / f"labels-{seed}")
    qualities: dict[str, list[float]] = {}
    bits: dict[str, list[float]] = {}
    for seed in seeds:
        for arm, changes in arms(args.workdir).items():
            for row in run_or_resume(base(seed=seed, **changes), folder(arm, seed)):
                if row["name"] in ("student", "control"):
                    name = "labels" if row["name"] == "control" else arm
                    qualities.setdefault(name, []).append(100 * row["accuracy"])
        console.print(f"seed {seed} is trained")
    for seed in seeds:
        for name, value in bits_of_seed(seed, seeds, folder, args.workdir).items():
            bits.setdefault(name, []).append(value)
    heading = ["", "accuracy %", "bits of the first teacher"]
    shown = lambda name: mean_and_interval(qualities[name]) if name in qualities else ""
    lines = [[name, shown(name), mean_and_interval(values, 2)] for name, values in bits.items()]
    console.print(aligned([heading, *lines]), highlight=False, soft_wrap=True)
    (args.workdir / "transfer.json").write_text(json.dumps({"accuracy": qualities, "bits": bits}, indent=1))


if __name__ == "__main__":
    main()
