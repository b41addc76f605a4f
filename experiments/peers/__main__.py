"""Study peers, averages and earlier generations as teachers: python -m experiments.peers [--workdir DIR] [--seeds 3]

Students learn 500 digits from labels alone (the control), or also from peers that learn with them, from a wider network
that learns from labels at the same time (co-training) or learned before, from their running average, or from an earlier
generation of themselves (born again). The broken twins are peers that never learn, an average that is the student
itself, and an earlier generation whose classes are shifted by one. A run that was stopped resumes.
"""

from pathlib import Path

from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.study import Study

MODEL, WIDE = "mlp(widths=(128,), classes=10)", "mlp(widths=(256, 256), classes=10)"
BESIDE = {"cross_entropy": {}, "kd": {"term": "kd(temperature=1.0)"}}
MISREAD = (9, 0, 1, 2, 3, 4, 5, 6, 7, 8)
FROZEN = {"teachers": {"rate": "0.0"}}

CONFIG = Path(__file__).parents[2] / "configs" / "peers.py"
BASE = differ(
    load_config(f"{CONFIG}:alone"),
    evaluate={"every": 600, "layers": ()},
    logging={"tensorboard": False, "every": 100},
    mesh={"data": 1},
)


def learns(step: str, *peers: str, **changes):
    """Return the changes for a student that learns from untrained peers."""
    teachers = {f"peer{number}": {"model": model} for number, model in enumerate(peers)}
    return {"step": step, "teachers": teachers, "objective": BESIDE, "fusion": "average()", **changes}


def born(before: str, model: str = MODEL, **options):
    """Return the changes for a student that learns from a trained network."""
    return {"teachers": {before: {"model": model, **options}}, "objective": BESIDE}


ARMS = {
    "labels": {},
    "a peer": learns("mutual()", MODEL),
    "a wider peer": learns("mutual()", WIDE),
    "three peers": learns("mutual()", MODEL, MODEL, WIDE),
    "a peer that never learns (twin)": learns("mutual()", MODEL, roles=FROZEN),
    "co-training": learns("mutual(terms=('cross_entropy',))", WIDE),
    "co-training with one that never learns (twin)": learns("mutual(terms=('cross_entropy',))", WIDE, roles=FROZEN),
    "the wider one, trained before": born("wide", WIDE),
    "its average": learns("averaged(momentum=0.98)", MODEL),
    "its average, of one step (twin)": learns("averaged(momentum=0.0)", MODEL),
    "born again": born("first"),
    "born again, twice": born("second"),
    "born again, classes misread (twin)": born("first", classes=MISREAD),
}


STUDY = Study(
    name="peers",
    question="Does a student gain from peers, from its own average, or from an earlier generation of itself?",
    base=BASE,
    axes={"arm": ARMS},
    baseline="labels",
    teachers={  # trained once, with seeds that no student uses
        "first": differ(BASE, seed=100),
        "second": differ(BASE, seed=101, **born("first")),
        "wide": differ(BASE, seed=102, student={"model": WIDE}),
    },
    measures=(ACCURACY._replace(digits=1), Measure("nll", "NLL (nats)", digits=3)),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
