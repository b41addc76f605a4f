"""Study teacher assistants: python -m experiments.assistant [--workdir DIR] [--seeds 3]

A perceptron of width 16 learns 500 digits from a much larger teacher that was trained on all 4,000, or from an
assistant of intermediate size that was distilled from that teacher. The controls are labels alone, and an assistant
trained on labels alone. The broken twin is an assistant whose classes are shifted by one. A run that was stopped
resumes.
"""

from experiments.peers.__main__ import BASE, MISREAD
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ
from jaxdistill.run.study import Study

SMALL, MIDDLE, LARGE = (f"mlp(widths={widths}, classes=10)" for widths in ("(16,)", "(64,)", "(512, 512)"))
BESIDE = {"cross_entropy": {"weight": 0.1}, "kd": {"term": "kd(temperature=4.0)"}}


def taught_by(name: str, model: str, **options):
    """Return the changes for a student that learns from this network."""
    return {"teachers": {name: {"model": model, **options}}, "objective": BESIDE}


ARMS = {
    "the teacher": taught_by("teacher", LARGE),
    "an assistant": taught_by("assistant", MIDDLE),
    "an assistant of labels alone": taught_by("alone", MIDDLE),
    "labels": {},
    "an assistant, classes misread (twin)": taught_by("assistant", MIDDLE, classes=MISREAD),
}


MIDDLE_BASE = differ(BASE, student={"model": MIDDLE})
STUDY = Study(
    name="assistant",
    question="Does an assistant bridge the gap between a large teacher and a small student?",
    base=differ(BASE, title="Assistant, on 500 digits", student={"model": SMALL}),
    axes={"arm": ARMS},
    baseline="the teacher",
    teachers={  # trained once, with seeds that no student uses
        "teacher": differ(BASE, seed=100, student={"model": LARGE}, data={"train": "train"}),
        "assistant": differ(MIDDLE_BASE, seed=101, **taught_by("teacher", LARGE)),
        "alone": differ(MIDDLE_BASE, seed=101),
    },
    measures=(ACCURACY._replace(digits=1), Measure("nll", "NLL (nats)", digits=3)),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
