"""Does an assistant bridge a gap? python -m experiments.assistant [--workdir DIR] [--seeds 3]

A perceptron of 16 learns 500 digits from a teacher many times its size that learned all 4,000, or from an assistant
of a size between them that learned from that teacher. Beside them: labels alone, an assistant of labels alone, and as
broken twin an assistant whose classes are misread. A run that was stopped goes on.
"""

from experiments.peers.__main__ import BASE, MISREAD
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ
from jaxdistill.run.study import Study

SMALL, MIDDLE, LARGE = (f"mlp(widths={widths}, classes=10)" for widths in ("(16,)", "(64,)", "(512, 512)"))
BESIDE = {"cross_entropy": {"weight": 0.1}, "kd": {"term": "kd(temperature=4.0)"}}


def told_by(name: str, model: str, **more):
    """What a student differs by that learns from this one."""
    return {"teachers": {name: {"model": model, **more}}, "objective": BESIDE}


ARMS = {
    "the teacher": told_by("teacher", LARGE),
    "an assistant": told_by("assistant", MIDDLE),
    "an assistant of labels alone": told_by("alone", MIDDLE),
    "labels": {},
    "an assistant, classes misread (twin)": told_by("assistant", MIDDLE, classes=MISREAD),
}


OF_MIDDLE = differ(BASE, student={"model": MIDDLE})
STUDY = Study(
    name="assistant",
    question="Does an assistant bridge the gap between a large teacher and a small student?",
    base=differ(BASE, title="Assistant, on 500 digits", student={"model": SMALL}),
    axes={"arm": ARMS},
    baseline="the teacher",
    teachers={  # trained once, with seeds that are none of the students'
        "teacher": differ(BASE, seed=100, student={"model": LARGE}, data={"train": "train"}),
        "assistant": differ(OF_MIDDLE, seed=101, **told_by("teacher", LARGE)),
        "alone": differ(OF_MIDDLE, seed=101),
    },
    measures=(ACCURACY._replace(digits=1), Measure("nll", "NLL (nats)", digits=3)),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
