"""Does a gate find out whom to hear? python -m experiments.routing [--workdir DIR] [--seeds 5] [--worlds domains ...]

Students of real digits learn from several teachers at once, without labels: fused evenly, by entropy, by what is right
(CA-MKD, which reads all labels), by a gate that is calibrated on 200 labels, and from each teacher alone. The worlds:

    noise        one good teacher, three that learned shuffled labels
    agreeing     one good teacher, two that agree on the next class
    domains      digits and their negatives; each of two teachers has seen one kind
    two good     two good teachers
    specialists  three teachers, each of some classes
    dead layer   hints from a layer that is alive, or dead; which of them, a quiz decides

A run that was stopped goes on, and a finished one is taken over.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import jaxdistill
from experiments.compare import paired, spread
from experiments.routing.worlds import base
from jaxdistill.config import differ

CONVOLVED = "resnet(widths=(16, 32), blocks=1, classes=10)"
TAUGHT = {  # teachers: the data set that each learned from
    **dict.fromkeys(("good", "other", "third", "half_dead"), "digits()"),
    **{f"noise{n}": "digits(shuffled=True)" for n in range(3)},
    **{f"domain{n}": f"digits(domain={n})" for n in range(2)},
    **{f"expert{n}": f"digits(specialty={n})" for n in range(3)},
}
NEXT = (9, 0, 1, 2, 3, 4, 5, 6, 7, 8)  # who is asked for a class answers for the one before: it says the next
WORLDS: dict[str, dict[str, dict[str, Any]]] = {
    "noise": {"good": {}, **{f"noise{n}": {} for n in range(3)}},
    "agreeing": {"good": {}, "other": {"classes": NEXT}, "third": {"classes": NEXT}},
    "domains": {"domain0": {}, "domain1": {}},
    "two good": {"good": {}, "other": {}},
    "specialists": {f"expert{n}": {} for n in range(3)},
}
RIGHT = {"domains": "domain", "specialists": "expert"}
GATE = "gate, 200 labels"
FUSIONS = {"uniform": "average()", "entropy": "entropy()", "confidence, all labels": "confidence()"}
HINT = {"weight": 10.0}

Row = dict[str, Any]


def ran(config, folder: Path) -> Row:
    """The student's row of a run, and the last line of its log."""
    rows = jaxdistill.distill(config, folder, Console(quiet=True)).rows
    lines = [json.loads(line) for line in (folder / "student" / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "train"]
    return {**next(row for row in rows if row["name"] == "student"), "log": logged[-1]}


def teach(workdir: Path, config, console: Console) -> None:
    """Trains the teachers."""
    for number, (name, data) in enumerate(TAUGHT.items()):
        own = {
            "title": name,
            "seed": 100 + number,
            "student": {"model": "dead_end()" if name == "half_dead" else CONVOLVED},
            "objective": {"cross_entropy": {}},
            "data": {"name": data, "train": "transfer"},
        }
        accuracy = 100 * ran(differ(config, **own), workdir / name)["accuracy"]
        console.print(f"teacher {name}: {accuracy:.1f} % on test records of {data}")


def arms(world: str, workdir: Path, config) -> dict[str, Any]:
    """The configs that are compared in a world, by name."""
    chosen = {
        name: {"model": CONVOLVED, "checkpoint": str(workdir / name), **more} for name, more in WORLDS[world].items()
    }
    every = differ(config, teachers=chosen)
    calibrated = {"calibration": {"split": "calibration", "batch_size": 100}}
    right = RIGHT.get(world, "")
    step = f"watched(right={right!r})" if right else "routing()"
    return {
        **{arm: differ(every, fusion=fusion) for arm, fusion in FUSIONS.items()},
        GATE: differ(every, fusion="gate()", step=step, streams=calibrated),
        **{f"{name} alone": differ(config, teachers={name: teacher}) for name, teacher in chosen.items()},
    }


def dead_layer(workdir: Path, config) -> dict[str, Any]:
    """Students of 100 labels and a hint, from a teacher of which a layer is dead."""
    few = differ(
        config,
        student={"model": "mlp(widths=(64, 64), classes=10)"},
        teachers={"half_dead": {"model": "dead_end()", "checkpoint": str(workdir / "half_dead")}},
        data={"name": "digits()", "train": "few"},
    )
    hint = lambda term, **more: differ(few, objective={"cross_entropy": {}, "hint": {"term": term, **HINT}}, **more)
    quiz = {"quiz": {"split": "calibration", "batch_size": 100}}
    return {
        "no hint": differ(few, objective={"cross_entropy": {}}),
        "dead layer": hint("hidden(layers=((1, 3),))"),
        "living layer": hint("hidden(layers=((1, 2),))"),
        "both, evenly": hint("hidden(layers=((1, 3), (1, 2)))"),
        "a quiz decides": hint(
            "routed_hidden(layers=((1, 3), (1, 2)))", fusion="gate(paths=2)", step="watched(by='quiz')", streams=quiz
        ),
    }


def study(world: str, configs: dict[str, Any], workdir: Path, seeds: int, console: Console) -> dict[str, list[Row]]:
    """Runs every arm of a world over the seeds, and shows what came out."""
    found = {}
    for arm, config in configs.items():
        folder = workdir / world.replace(" ", "-") / arm.replace(" ", "-").replace(",", "")
        found[arm] = [ran(differ(config, seed=seed), folder / str(seed)) for seed in range(seeds)]
    accuracy = {arm: [100 * row["accuracy"] for row in rows] for arm, rows in found.items()}
    table = Table("learns from", "accuracy %", "weight on the right one", title=world)
    for arm, rows in found.items():
        weights = [row["log"]["gate/right"] for row in rows if "gate/right" in row["log"]]
        table.add_row(arm, spread(accuracy[arm], 1), spread(weights, 3) if weights else "")
    console.print(table)
    chosen = GATE if world in WORLDS else "a quiz decides"
    for arm in accuracy:
        if arm != chosen:
            console.print(f"{chosen} over {arm}, in points: {paired(accuracy[chosen], accuracy[arm])}")
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/routing", type=Path)
    words.add_argument("--seeds", default=5, type=int)
    words.add_argument("--worlds", nargs="*", default=[*WORLDS, "dead layer"], choices=[*WORLDS, "dead layer"])
    known = words.parse_args()
    console = Console()

    programs = str(known.workdir / "compiled")  # seeds share them
    config = base(logging={"tensorboard": False, "every": 100, "compilation_cache": programs})
    teach(known.workdir, config, console)
    for world in known.worlds:
        made = arms(world, known.workdir, config) if world in WORLDS else dead_layer(known.workdir, config)
        found = study(world, made, known.workdir, known.seeds, console)
        (known.workdir / f"{world.replace(' ', '-')}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
