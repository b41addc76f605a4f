"""Study training data with a teacher: python -m experiments.data [--workdir DIR] [--seeds 3] [--steps 600]

Students see 1, 5, 10, 20 or 100 % of 4,000 digits. They learn from the labels, from a teacher that was trained on all
of them, or from mixtures of them that the teacher labels. A tenth is also chosen by how hard the teacher finds each
record, instead of at random. The broken twins use noise in place of mixtures, mixed labels in place of the teacher's
outputs, and the hardness of other records. An ablation uses the teacher's most likely class in place of its
distribution. A run that was stopped resumes.
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
    """Ablation of soft targets: the teacher's most likely class as a label, without the distribution."""

    def values(signals):
        return softmax_cross_entropy(signals.student.logits, jnp.argmax(signals.teacher.logits, axis=-1))

    return stateless(values, needs=frozenset({"teacher"}))


@registry.transforms.register
def noise():
    """Broken twin of mixtures: random pixels, with as many black ones as in a digit."""

    def apply(batch, uniforms):
        drawn = np.maximum(uniforms - 0.8, 0) / 0.2 * 255
        return batch | {"image": drawn.reshape(batch["image"].shape).astype(np.uint8)}

    return Transform(28 * 28, apply)


@registry.selections.register
def shuffled(share: float, cache: str):
    """Broken twin of `hardest`: gives each record the hardness of another one."""
    hardest = registry.selections["hardest"](share, cache)

    def order(seed, records, hard):
        return hardest.order(seed, records, np.random.default_rng(seed).permutation(hard))

    return Selection(share, order, hardest.caches, hardest.by)


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


def with_data(config, select: str = "", augment: tuple[str, ...] = (), **differences):
    return differ(config, data={"name": "mnist5k", "select": select, "augment": augment}, **differences)


def arms(config, teacher: Path, outputs: Path):
    """Return the configs of all arms, by name and by the share of the records."""
    labels_only = differ(config, teachers={}, objective=LABELS)
    taught = differ(config, teachers={"wide": {**config.teachers.wide.to_dict(), "checkpoint": str(teacher)}})
    mixed = {"mixed": {"term": "cross_entropy(target='label_probs')"}}
    configs = {}
    for share in SHARES:
        select = f"random(share={share})" if share < 1 else ""
        configs |= {
            ("labels", share): with_data(labels_only, select),
            ("labels, mixed", share): with_data(labels_only, select, MIXUP, objective=mixed),
            ("teacher", share): with_data(taught, select),
            ("teacher, mixtures", share): with_data(taught, select, MIXUP),
            ("teacher, mixtures, first choice", share): with_data(
                taught, select, MIXUP, objective={"first_choice": {}}
            ),
        }
    configs |= {
        ("teacher, cutmix", share): with_data(taught, f"random(share={share})", CUTMIX) for share in (0.01, 0.1)
    }
    configs["teacher, noise", 0.0] = with_data(taught, "", ("noise()",))
    by_hardness = lambda rule, options="": f"{rule}(share=0.1, cache={str(outputs)!r}{options})"
    for name, select in {
        "hardest": by_hardness("hardest"),
        "hardest by margin": by_hardness("hardest", ", by='margin'"),
        "hardest by loss": by_hardness("hardest", ", by='loss'"),
        "hardest, shuffled": by_hardness("shuffled"),
        "easiest": by_hardness("easiest"),
    }.items():
        configs[f"teacher, {name}", 0.1] = with_data(taught, select)
    curriculum = ", share=linear(start=0.2, end=1.0), first='easiest', power=0.0"
    for name, options in {"weighed": "", "hardest half": ", share=0.5, power=0.0", "curriculum": curriculum}.items():
        hard = {"kd": {"term": f"hard(loss=kd(temperature=4.0), by='loss'{options})"}}
        configs[f"teacher, {name} of a batch", 1.0] = with_data(taught, objective=hard)
    return configs


def relative_error_rates(config, outputs: Path) -> dict[str, float]:
    """Return the teacher's error rate on each chosen tenth, divided by its rate on all records."""
    records = open_records("mnist5k", "train", default_folder(), "data", "train")
    rows = np.arange(len(records))
    logits = np.stack([row["logits"] for row in Store(outputs / "train").__getitems__(rows.tolist())])
    wrong = logits.argmax(-1) != records.take(rows)["label"]
    relative_errors = lambda select: (
        wrong[subset.choose_records(resolve(with_data(config, select), jax.devices()).data, records)].mean()
        / wrong.mean()
    )
    rules = {"random": "random(share=0.1)", "hardest, shuffled": f"shuffled(share=0.1, cache={str(outputs)!r})"}
    rules |= {rule: f"{rule}(share=0.1, cache={str(outputs)!r})" for rule in ("hardest", "easiest")}
    rules |= {f"hardest by {by}": f"hardest(share=0.1, cache={str(outputs)!r}, by={by!r})" for by in ("margin", "loss")}
    return {"errors": int(wrong.sum()), **{name: float(relative_errors(select)) for name, select in rules.items()}}


def tables(accuracies: dict[tuple[str, float], list[float]], console: Console) -> None:
    table = Table("learns from", *(f"{100 * share:.0f} %" for share in SHARES))
    for arm in dict.fromkeys(name for name, share in accuracies if share):
        shown = [spread(accuracies[arm, share], 1) if (arm, share) in accuracies else "" for share in SHARES]
        table.add_row(arm, *shown)
    console.print(table)
    console.print(f"noise, labelled by the teacher: {spread(accuracies['teacher, noise', 0.0], 1)}")
    for share in SHARES:
        gain = paired(accuracies["teacher, mixtures", share], accuracies["teacher", share])
        console.print(f"{100 * share:.0f} %: mixtures minus soft targets on real digits alone: {gain}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/data", type=Path)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--steps", default=600, type=int)
    args = parser.parse_args()
    console, quiet, folder = Console(), Console(quiet=True), args.workdir
    config = base(args.steps, (folder / "compiled").absolute())

    (teacher, _) = jaxdistill.distill(differ(config, steps=1), folder / "teacher", quiet).rows
    console.print(f"teacher: {100 * teacher['accuracy']:.1f} %")
    checkpoint, outputs = folder / "teacher" / "teachers" / "wide", folder / "said"
    entry = config.teachers.wide.to_dict() | {"checkpoint": str(checkpoint), "cache": f"outputs({str(outputs)!r})"}
    cache.write(differ(config, teachers={"wide": entry}), quiet)
    errors = relative_error_rates(config, outputs)
    console.print(f"error rate of the teacher in each tenth, relative to all records: {errors}")
    accuracies = {}
    for number, ((arm, share), arm_config) in enumerate(arms(config, checkpoint, outputs).items()):
        runs = [
            jaxdistill.distill(differ(arm_config, seed=s), folder / f"{number}-{s}", quiet) for s in range(args.seeds)
        ]
        accuracies[arm, share] = [100 * next(r["accuracy"] for r in run.rows if r["name"] == "student") for run in runs]
        shown = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies[arm, share])
        console.print(f"{arm}, {100 * share:.0f} %: {shown}")
    tables(accuracies, console)
    numbers = {f"{arm} {share}": values for (arm, share), values in accuracies.items()}
    results = {"teacher": teacher["accuracy"], "enriched": errors, **numbers}
    (folder / "data.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
