"""What is learned of a domain without labels? python -m experiments.adaptation [--workdir DIR] [--seeds 3]

A student has labelled digits of one domain (white on black) and unlabelled ones of another (black on white), on which
it is judged. A teacher knows each domain, and is heard on rows of its own alone. Beside it: labels of the source
alone, the source's teacher on both, the student's own average on the target; labels of the target, which nobody has,
as the most that can be hoped for. The broken twin asks each teacher about the other's domain. A run that was stopped
goes on.
"""

from functools import cache

import numpy as np

from experiments.routing.__main__ import CONVOLVED
from experiments.routing.worlds import Digits, base, digits
from jaxdistill.core import registry
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ
from jaxdistill.run.study import Study


@registry.datasets.register
@cache
def two_domains(split: str, swapped: bool = False, told: bool = False):
    """Digits of a source, with labels, and of a target.

    Args:
        split: "source", "target" (its labels are taken away: each is 0), "test" (of the target).
        swapped: of each row the other domain's teacher is present.
        told: the target's labels are there after all.
    """
    number = int(split != "source")
    records = digits("test" if split == "test" else "transfer", domain=number)
    present = np.roll(np.array([1 - number, number], np.float32), int(swapped))
    untold = {"label": np.int32(0)} if split == "target" and not told else {}
    return Digits({**row, "present": present, **untold} for row in records)


TASK = {"cross_entropy": {}}
SOFT = {"source": {"term": "kd(temperature=4.0)"}, "target": {"term": "kd(temperature=4.0)", "stream": "target"}}
TARGET = {"target": {"split": "target"}}
BOTH = {name: {"model": CONVOLVED} for name in ("source", "target")}
EACH = {"teachers": BOTH, "objective": {**TASK, **SOFT}, "fusion": "average()", "streams": TARGET}
AVERAGE = {"own": {"model": "mlp(widths=(128,), classes=10)"}}
ARMS = {
    "source's labels": {},
    "a teacher for each domain": EACH,
    "the source's teacher on both": {**EACH, "teachers": {"source": BOTH["source"]}, "fusion": "single()"},
    "its own average on the target": {
        "teachers": AVERAGE,
        "step": "averaged(momentum=0.98)",
        "objective": {**TASK, "target": {"term": "kd(temperature=1.0)", "stream": "target"}},
        "streams": TARGET,
    },
    "target's labels too": {
        "objective": {**TASK, "told": {"term": "cross_entropy", "stream": "target"}},
        "data": {"name": "two_domains(told=True)"},
        "streams": TARGET,
    },
    "teachers swapped (twin)": {**EACH, "data": {"name": "two_domains(swapped=True)"}},
}


START = base(title="Domain adaptation", objective=TASK, data={"name": "two_domains()", "train": "source"})
TAUGHT = base(student={"model": CONVOLVED}, objective=TASK)
STUDY = Study(
    name="adaptation",
    question="What is learned of a domain without labels?",
    base=START,
    axes={"arm": ARMS},
    baseline="source's labels",
    teachers={
        name: differ(TAUGHT, seed=100 + number, data={"name": f"digits(domain={number})", "train": "transfer"})
        for number, name in enumerate(BOTH)
    },
    measures=(ACCURACY._replace(digits=1), Measure("nll", "NLL (nats)", digits=3)),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
