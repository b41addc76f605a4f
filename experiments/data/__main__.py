"""What are data worth beside a teacher? python -m experiments.data [--workdir DIR] [--seeds 3] [--steps 600]

Students see 1, 5, 10, 20 or 100 % of 4,000 digits, and learn from their labels, from a teacher that saw all of them, or
from mixtures of them that the teacher labels. Of a tenth, records are drawn at random, or by how hard the teacher finds
them. Broken twins: noise for mixtures, mixed labels for the teacher's word, hardness of other records. The teacher's
first choice in place of its distribution tells what the distribution is worth. A run that was stopped goes on.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxdistill
from jaxdistill import make
from jaxdistill.core import registry
from jaxdistill.core.packages import default_folder
from jaxdistill.data import Transform, open_records
from jaxdistill.data.selection import Selection
from jaxdistill.data.store import Store
from jaxdistill.evaluation.comparison import paired, spread
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import stateless
from jaxdistill.run import subset
from jaxdistill.run.commands import cache
from jaxdistill.run.config import differ
from jaxdistill.run.resolve import resolve

SHARES = (0.01, 0.05, 0.1, 0.2, 1.0)
KD = {"kd": {"term": "kd(temperature=4.0)"}}
MIXUP = ("mixup(alpha=1.0, classes=10)",)
CUTMIX = ("cutmix(alpha=1.0, classes=10)",)
LABELS = {"cross_entropy": {}}


@registry.losses.register
def first_choice():
    """What is left of soft targets without their distribution: the teacher's likeliest class as a label."""

    def values(signals):
        return softmax_cross_entropy(signals.student.logits, jnp.argmax(signals.teacher.logits, axis=-1))

    return stateless(values, needs=frozenset({"teacher"}))


@registry.transforms.register
def noise():
    """A broken twin of mixtures: pixels of no meaning, as many of them black as in a digit."""

    def apply(batch, uniforms):
        drawn = np.maximum(uniforms - 0.8, 0) / 0.2 * 255
        return batch | {"image": drawn.reshape(batch["image"].shape).astype(np.uint8)}

    return Transform(28 * 28, apply)


@registry.selections.register
def shuffled(share: float, cache: str):
    """A broken twin of `hardest`: the hardness of other records."""
    found = registry.selections["hardest"](share, cache)

    def order(seed, records, hard):
        return found.order(seed, records, np.random.default_rng(seed).permutation(hard))

    return Selection(share, order, found.caches, found.by)


def base(steps: int, compiled: Path):
    return make(
        title="Data as a lever: digits",
        steps=steps,
        batch_size=100,
        student={"model": "mlp(widths=(128,), classes=10)"},
        teachers={
            "wide": {
                "model": "mlp(widths=(512, 512), classes=10)",
                "steps": 1500,
                "rate": "cosine(start=0.003)",
                "augment": ("shift(pixels=2)",),
            }
        },
        objective=KD,
        control=False,
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "mnist5k"},
        evaluate={"every": steps, "batch_size": 500, "layers": ()},
        logging={"tensorboard": False, "every": 100, "compilation_cache": str(compiled)},
        mesh={"data": 1},
    )


def seeing(config, select: str = "", augment: tuple[str, ...] = (), **differences):
    return differ(config, data={"name": "mnist5k", "select": select, "augment": augment}, **differences)


def arms(config, teacher: Path, said: Path):
    """The configs that are compared, by what is learned from and by how much of it."""
    alone = differ(config, teachers={}, objective=LABELS)
    learned = differ(config, teachers={"wide": {**config.teachers.wide.to_dict(), "checkpoint": str(teacher)}})
    mixed = {"mixed": {"term": "cross_entropy(target='label_probs')"}}
    found = {}
    for share in SHARES:
        select = f"random(share={share})" if share < 1 else ""
        found |= {
            ("labels", share): seeing(alone, select),
            ("labels, mixed", share): seeing(alone, select, MIXUP, objective=mixed),
            ("teacher", share): seeing(learned, select),
            ("teacher, mixtures", share): seeing(learned, select, MIXUP),
            ("teacher, mixtures, first choice", share): seeing(learned, select, MIXUP, objective={"first_choice": {}}),
        }
    found |= {("teacher, cutmix", share): seeing(learned, f"random(share={share})", CUTMIX) for share in (0.01, 0.1)}
    found["teacher, noise", 0.0] = seeing(learned, "", ("noise()",))
    of = lambda rule, more="": f"{rule}(share=0.1, cache={str(said)!r}{more})"
    for name, select in {
        "hardest": of("hardest"),
        "hardest by margin": of("hardest", ", by='margin'"),
        "hardest by loss": of("hardest", ", by='loss'"),
        "hardest, shuffled": of("shuffled"),
        "easiest": of("easiest"),
    }.items():
        found[f"teacher, {name}", 0.1] = seeing(learned, select)
    rest = ", share=linear(start=0.2, end=1.0), first='easiest', power=0.0"
    for name, words in {"weighed": "", "hardest half": ", share=0.5, power=0.0", "curriculum": rest}.items():
        hard = {"kd": {"term": f"hard(loss=kd(temperature=4.0), by='loss'{words})"}}
        found[f"teacher, {name} of a batch", 1.0] = seeing(learned, objective=hard)
    return found


def enriched(config, said: Path) -> dict[str, float]:
    """How many times as many of the teacher's errors a tenth holds as a tenth of all."""
    records = open_records("mnist5k", "train", default_folder(), "data", "train")
    everyone = np.arange(len(records))
    logits = np.stack([row["logits"] for row in Store(said / "train").__getitems__(everyone.tolist())])
    wrong = logits.argmax(-1) != records.take(everyone)["label"]
    of = lambda select: (
        wrong[subset.chosen(resolve(seeing(config, select), jax.devices()).data, records)].mean() / wrong.mean()
    )
    rules = {"random": "random(share=0.1)", "hardest, shuffled": f"shuffled(share=0.1, cache={str(said)!r})"}
    rules |= {rule: f"{rule}(share=0.1, cache={str(said)!r})" for rule in ("hardest", "easiest")}
    rules |= {f"hardest by {by}": f"hardest(share=0.1, cache={str(said)!r}, by={by!r})" for by in ("margin", "loss")}
    return {"errors": int(wrong.sum()), **{name: float(of(select)) for name, select in rules.items()}}


def tables(found: dict[tuple[str, float], list[float]], console: Console) -> None:
    table = Table("learns from", *(f"{100 * share:.0f} %" for share in SHARES))
    for arm in dict.fromkeys(name for name, share in found if share):
        shown = [spread(found[arm, share], 1) if (arm, share) in found else "" for share in SHARES]
        table.add_row(arm, *shown)
    console.print(table)
    console.print(f"noise, labelled by the teacher: {spread(found['teacher, noise', 0.0], 1)}")
    for share in SHARES:
        gain = paired(found["teacher, mixtures", share], found["teacher", share])
        console.print(f"{100 * share:.0f} %: mixtures beside the teacher's word on real digits alone: {gain}")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/data", type=Path)
    words.add_argument("--seeds", default=3, type=int)
    words.add_argument("--steps", default=600, type=int)
    known = words.parse_args()
    console, quiet, folder = Console(), Console(quiet=True), known.workdir
    config = base(known.steps, (folder / "compiled").absolute())

    (teacher, _) = jaxdistill.distill(differ(config, steps=1), folder / "teacher", quiet).rows
    console.print(f"teacher: {100 * teacher['accuracy']:.1f} %")
    checkpoint, said = folder / "teacher" / "teachers" / "wide", folder / "said"
    entry = config.teachers.wide.to_dict() | {"checkpoint": str(checkpoint), "cache": f"outputs({str(said)!r})"}
    cache.write(differ(config, teachers={"wide": entry}), quiet)
    errors = enriched(config, said)
    console.print(f"errors of the teacher in a tenth, beside a tenth of them: {errors}")
    found = {}
    for number, ((arm, share), each) in enumerate(arms(config, checkpoint, said).items()):
        runs = [jaxdistill.distill(differ(each, seed=s), folder / f"{number}-{s}", quiet) for s in range(known.seeds)]
        found[arm, share] = [100 * next(r["accuracy"] for r in run.rows if r["name"] == "student") for run in runs]
        console.print(f"{arm}, {100 * share:.0f} %: {', '.join(f'{accuracy:.1f}' for accuracy in found[arm, share])}")
    tables(found, console)
    numbers = {f"{arm} {share}": accuracies for (arm, share), accuracies in found.items()}
    results = {"teacher": teacher["accuracy"], "enriched": errors, **numbers}
    (folder / "data.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
