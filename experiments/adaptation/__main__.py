"""Study domain adaptation without labels: python -m experiments.adaptation [--workdir DIR] [--seeds 3]

A student has labelled digits of a source domain (white on black) and unlabelled ones of a target domain (black on
white), on which it is evaluated. Each domain has a teacher, which is queried on rows of that domain alone. The other
arms: labels of the source alone (the control), the source's teacher on both domains, the student's running average on
the target, and labels of the target as upper bound. The broken twin queries each teacher on the other's domain. A run
that was stopped resumes.
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
    """Load digits of a source domain, with labels, or of a target domain.

    Args:
        split: "source", "target" (its labels are removed: each is 0), "test" (of the target).
        swapped: mark the other domain's teacher as the one that knows a row.
        told: keep the target's labels.
    """
    number = int(split != "source")
    records = digits("test" if split == "test" else "transfer", domain=number)
    present = np.roll(np.array([1 - number, number], np.float32), int(swapped))
    hidden_label = {"label": np.int32(0)} if split == "target" and not told else {}
    return Digits({**row, "present": present, **hidden_label} for row in records)


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
    question="What does a student learn about a domain without labels?",
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
