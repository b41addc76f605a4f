"""Study routing among teachers: python -m experiments.routing [--workdir DIR] [--seeds 5] [--worlds domains ...]

Students of real digits learn from several teachers at once, without labels. The teachers are fused evenly, by entropy,
by their error on the labels (CA-MKD, which reads all labels), or by a gate that is calibrated on 200 labels; further
arms use one teacher alone. A world is one set of teachers with one data set:

    noise        one good teacher, three that learned shuffled labels
    agreeing     one good teacher, two that agree on the next class
    domains      digits and their negatives; each of two teachers was trained on one kind
    two good     two good teachers
    specialists  three teachers, each trained on some classes
    dead layer   hints from an informative layer or a dead one; probes of the layers or a quiz choose between them

A run that was stopped resumes, and finished runs are not repeated.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from experiments.routing.worlds import base
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands.sweep import guarded, run_study
from jaxdistill.run.config import differ
from jaxdistill.run.study import Study, run_or_resume

CONVOLVED = "resnet(widths=(16, 32), blocks=1, classes=10)"
TRAINING_SETS = {  # the data set that each teacher learns from
    **dict.fromkeys(("good", "other", "third", "half_dead"), "digits()"),
    **{f"noise{n}": "digits(shuffled=True)" for n in range(3)},
    **{f"domain{n}": f"digits(domain={n})" for n in range(2)},
    **{f"expert{n}": f"digits(specialty={n})" for n in range(3)},
}
NEXT = (9, 0, 1, 2, 3, 4, 5, 6, 7, 8)  # the teacher's class order, rotated by one: it predicts the next class
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
MEASURES = (
    ACCURACY._replace(digits=1),
    Measure("gate/right", "weight on the right one", digits=3),
    Measure("gate/share/0", "weight of the first teacher", digits=3),
)


def teach(workdir: Path, config: ConfigDict, console: Console) -> None:
    """Train the teachers, which the worlds share."""
    for number, (name, data) in enumerate(TRAINING_SETS.items()):
        changes = {
            "title": name,
            "seed": 100 + number,
            "student": {"model": "dead_end()" if name == "half_dead" else CONVOLVED},
            "objective": {"cross_entropy": {}},
            "data": {"name": data, "train": "transfer"},
        }
        (row,) = run_or_resume(differ(config, **changes), workdir / name)
        console.print(f"teacher {name}: {100 * row['accuracy']:.1f} % on test records of {data}")


def teacher_study(world: str, workdir: Path, config: ConfigDict) -> Study:
    """Return the study of a world whose students learn from several teachers or from one, without labels."""
    teachers = {
        name: {"model": CONVOLVED, "checkpoint": str(workdir / name), **options}
        for name, options in WORLDS[world].items()
    }
    right = RIGHT.get(world, "")
    gate = {
        "fusion": "gate()",
        "step": f"watched(right={right!r})" if right else "routing()",
        "streams": {"calibration": {"split": "calibration", "batch_size": 100}},
    }
    alone = {f"{name} alone": {"fusion": "single()", "teachers": {name: entry}} for name, entry in teachers.items()}
    shared = differ(config, teachers=teachers)
    fusions = {"fusion": {**FUSIONS, GATE: gate, **alone}}
    return Study("routing", f"Which teacher is right? {world}", shared, fusions, GATE, cached=True, measures=MEASURES)


def layer_study(workdir: Path, config: ConfigDict) -> Study:
    """Return the study whose students learn from 100 labels and hints, from a teacher with a dead layer."""
    few = differ(
        config,
        student={"model": "mlp(widths=(64, 64), classes=10)"},
        teachers={"half_dead": {"model": "dead_end()", "checkpoint": str(workdir / "half_dead")}},
        data={"name": "digits()", "train": "few"},
    )
    hint = lambda term, **changes: {"objective": {"cross_entropy": {}, "hint": {"term": term, **HINT}}, **changes}
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
    measures = (*MEASURES[:1], Measure("gate/right", "weight of the dead layer", digits=3))
    return Study(
        "routing", "Which layer is informative? One is dead", few, {"hint": arms}, "probes decide", measures=measures
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/routing", type=Path)
    parser.add_argument("--seeds", default=5, type=int)
    parser.add_argument("--worlds", nargs="*", default=[*WORLDS, "dead layer"], choices=[*WORLDS, "dead layer"])
    args = parser.parse_args()
    console, workdir = Console(width=200), args.workdir
    programs = str((workdir / "compiled").absolute())
    config = base(logging={"tensorboard": False, "every": 100, "compilation_cache": programs})

    def work() -> None:
        teach(workdir, config, console)
        for world in args.worlds:
            study = teacher_study(world, workdir, config) if world in WORLDS else layer_study(workdir, config)
            run_study(study, workdir / world.replace(" ", "-"), args.seeds, console)

    sys.exit(guarded(work, workdir=workdir))


if __name__ == "__main__":
    main()
