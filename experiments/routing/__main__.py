"""Does a gate find out whom to hear? python -m experiments.routing [--workdir DIR] [--seeds 5] [--worlds domains ...]

Students of real digits learn from several teachers at once, without labels: fused evenly, by entropy, by what is right
(CA-MKD, which reads all labels), by a gate that is calibrated on 200 labels, and from each teacher alone. The worlds:

    noise        one good teacher, three that learned shuffled labels
    agreeing     one good teacher, two that agree on the next class
    domains      digits and their negatives; each of two teachers has seen one kind
    two good     two good teachers
    specialists  three teachers, each of some classes
    dead layer   hints from a layer that is alive, or dead; which of them, probes of the layers decide, or a quiz

A run that was stopped goes on, and a finished one is taken over.
"""

import argparse
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from experiments.routing.worlds import base
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands.sweep import conduct, exit_codes
from jaxdistill.run.config import differ
from jaxdistill.run.study import Study, ran

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
TOLD = (
    ACCURACY._replace(digits=1),
    Measure("gate/right", "weight on the right one", digits=3),
    Measure("gate/share/0", "weight of the first teacher", digits=3),
)


def teach(workdir: Path, config: ConfigDict, console: Console) -> None:
    """Trains the teachers, which the worlds share."""
    for number, (name, data) in enumerate(TAUGHT.items()):
        own = {
            "title": name,
            "seed": 100 + number,
            "student": {"model": "dead_end()" if name == "half_dead" else CONVOLVED},
            "objective": {"cross_entropy": {}},
            "data": {"name": data, "train": "transfer"},
        }
        (row,) = ran(differ(config, **own), workdir / name)
        console.print(f"teacher {name}: {100 * row['accuracy']:.1f} % on test records of {data}")


def among_teachers(world: str, workdir: Path, config: ConfigDict) -> Study:
    """Students that learn from several teachers, or from one of them, without labels."""
    chosen = {
        name: {"model": CONVOLVED, "checkpoint": str(workdir / name), **more} for name, more in WORLDS[world].items()
    }
    right = RIGHT.get(world, "")
    gate = {
        "fusion": "gate()",
        "step": f"watched(right={right!r})" if right else "routing()",
        "streams": {"calibration": {"split": "calibration", "batch_size": 100}},
    }
    alone = {f"{name} alone": {"fusion": "single()", "teachers": {name: entry}} for name, entry in chosen.items()}
    every = differ(config, teachers=chosen)
    fusions = {"fusion": {**FUSIONS, GATE: gate, **alone}}
    return Study("routing", f"Whom to hear? {world}", every, fusions, GATE, cached=True, measures=TOLD)


def among_layers(workdir: Path, config: ConfigDict) -> Study:
    """Students of 100 labels and a hint, from a teacher of which a layer is dead."""
    few = differ(
        config,
        student={"model": "mlp(widths=(64, 64), classes=10)"},
        teachers={"half_dead": {"model": "dead_end()", "checkpoint": str(workdir / "half_dead")}},
        data={"name": "digits()", "train": "few"},
    )
    hint = lambda term, **more: {"objective": {"cross_entropy": {}, "hint": {"term": term, **HINT}}, **more}
    labelled = lambda name: {name: {"split": "calibration", "batch_size": 100}}
    routed = hint("routed_hidden(layers=((1, 2), (1, 1)))", fusion="gate(paths=2)")
    arms = {
        "no hint": {"objective": {"cross_entropy": {}}},
        "dead layer": hint("hidden(layers=((1, 2),))"),
        "living layer": hint("hidden(layers=((1, 1),))"),
        "both, evenly": hint("hidden(layers=((1, 2), (1, 1)))"),
        "a quiz decides": {**routed, "step": "watched(by='quiz')", "streams": labelled("quiz")},
        "probes decide": {**routed, "step": "watched(probes=(2, 1))", "streams": labelled("calibration")},
    }
    told = (*TOLD[:1], Measure("gate/right", "weight of the dead layer", digits=3))
    return Study("routing", "Which layer to hear? One is dead", few, {"hint": arms}, "probes decide", measures=told)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--workdir", default="runs/routing", type=Path)
    words.add_argument("--seeds", default=5, type=int)
    words.add_argument("--worlds", nargs="*", default=[*WORLDS, "dead layer"], choices=[*WORLDS, "dead layer"])
    known = words.parse_args()
    console, workdir = Console(width=200), known.workdir
    programs = str((workdir / "compiled").absolute())
    config = base(logging={"tensorboard": False, "every": 100, "compilation_cache": programs})
    with exit_codes():
        teach(workdir, config, console)
        for world in known.worlds:
            study = among_teachers(world, workdir, config) if world in WORLDS else among_layers(workdir, config)
            conduct(study, workdir / world.replace(" ", "-"), known.seeds, console)


if __name__ == "__main__":
    main()
