"""Domain adaptation: digits with labels in white on black, digits without in black on white, on which all are judged.

A teacher for each domain, heard on rows of its own domain alone; the student has the labels of the source alone.
Commands:
    python -m jaxdistill.main --config configs/adaptation.py:source --workdir runs/adaptation/source
    python -m jaxdistill.main --config configs/adaptation.py:target --workdir runs/adaptation/target
    python -m jaxdistill.main --config configs/adaptation.py:student --workdir runs/adaptation/student
    python -m jaxdistill.main --config configs/adaptation.py:labels --workdir runs/adaptation/labels

    source, target   the teachers
    student          learns from both, and from the labels of the source
    labels           the student on the labels of the source alone: the control

Cost: a minute each. Result (1 seed): 90.2 %, its teacher 91.3, the control 10.0. Over 3 seeds, smaller and beside its
twin: `experiments/adaptation`.
"""

from functools import cache

import numpy as np
from jaxdistill.models.hub.packages import default_folder
from jaxdistill.registry import datasets

from jaxdistill import choose, differ, make
from jaxdistill.data import open_records

STUDENT, TEACHER = "mlp(widths=(128,), classes=10)", "mlp(widths=(256, 256), classes=10)"
RUNS = "runs/adaptation"


class Digits(list):
    """Records, and how many classes they have."""

    classes = 10


@datasets.register
@cache  # a run asks several times
def positives_and_negatives(split: str) -> Digits:
    """Half of the training digits for each domain: `present` says which of two teachers knows a record's.

    Args:
        split: "source", "target", "unlabelled" (the target, where each label is 0) or "test" (of the target).
    """
    records = open_records("mnist5k", "test" if split == "test" else "train", default_folder(), "data", "train")
    rows = np.arange(len(records))  # of the ten classes in turn, so each domain has as many of each
    found = records.take(rows if split == "test" else rows[rows // 10 % 2 == int(split != "source")])
    if split != "source":
        found["image"] = 255 - found["image"]
    if split == "unlabelled":
        found["label"] = np.zeros_like(found["label"])
    present = np.array([split == "source", split != "source"], np.float32)
    return Digits(
        {"image": x, "label": y, "present": present} for x, y in zip(found["image"], found["label"], strict=True)
    )


WAYS = {
    "source": {"student": {"model": TEACHER}},
    "target": {"student": {"model": TEACHER}, "data": {"train": "target"}},
    "student": {
        "teachers": {name: {"model": TEACHER, "checkpoint": f"{RUNS}/{name}/student"} for name in ("source", "target")},
        "fusion": "average()",
        "objective": {
            "cross_entropy": {},
            "source": {"term": "kd(temperature=4.0)"},
            "target": {"term": "kd(temperature=4.0)", "stream": "target"},
        },
        "streams": {"target": {"split": "unlabelled"}},
    },
    "labels": {},
}


def get_config(word="student"):
    config = make(
        title="Domain adaptation: digits and their negatives",
        steps=600,
        batch_size=100,
        student={"model": STUDENT},
        objective={"cross_entropy": {}},
        control=False,
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "positives_and_negatives", "train": "source"},
        evaluate={"every": 200, "batch_size": 500},
    )
    return differ(config, **choose(word, WAYS))
