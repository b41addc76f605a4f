"""Study the choice of rows in each batch: python -m experiments.selection [--workdir DIR] [--seeds 5]

Of 3,000 digits, 40 % have a wrong label. A student takes 500 steps of 32 rows, which are drawn at random or selected
from 320 by the step `batch_selection`: the learnable ones, the easy ones or the hard ones. The teacher was trained on
1,000 other digits. A run that was stopped resumes.
"""

from functools import cache

import numpy as np

from jaxdistill import make
from jaxdistill.core import registry
from jaxdistill.core.packages import default_folder
from jaxdistill.data import open_records
from jaxdistill.evaluation.report.study import ACCURACY, Measure
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ
from jaxdistill.run.study import Study

CLEAN, WRONG, CLASSES = 1000, 0.4, 10


class Digits(list):
    classes = CLASSES


@registry.datasets.register
@cache
def noisy_digits(split: str, wrong: float = WRONG):
    """Load digits of mnist5k.

    Args:
        split: "clean" (the first 1,000 for training), "noisy" (the other 3,000, a share of them with another label) or
            "test".
        wrong: share of wrong labels in the split "noisy".
    """
    records = open_records("mnist5k", "test" if split == "test" else "train", default_folder(), "data", "train")
    first, last = {"clean": (0, CLEAN), "noisy": (CLEAN, None), "test": (0, None)}[split]
    fields = records.take(np.arange(len(records))[first:last])
    label = fields["label"].astype(np.int32)
    if split == "noisy":
        draw = np.random.default_rng(0)
        is_wrong = draw.random(len(label)) < wrong
        label = np.where(is_wrong, (label + draw.integers(1, CLASSES, len(label))) % CLASSES, label).astype(np.int32)
    return Digits({"image": image, "label": y} for image, y in zip(fields["image"], label, strict=True))


START = make(
    title="Digits with wrong labels",
    steps=500,
    batch_size=32,
    student={"model": "mlp(widths=(128,), classes=10)"},
    teachers={"clean": {"model": "mlp(widths=(256, 256), classes=10)"}},
    objective={"cross_entropy": {}},
    control=False,
    optimizer="adamw(weight_decay=0.0001)",
    rate="cosine(start=0.003)",
    data={"name": "noisy_digits()", "train": "noisy"},
    evaluate={"every": 500, "batch_size": 500, "layers": ()},
    logging={"tensorboard": False, "every": 100},
    mesh={"data": 1},
)


def selected(by: str, **more):
    """Return the changes of an arm that selects 32 of 320 rows."""
    return {"batch_size": 320, "step": f"batch_selection(loss=cross_entropy(), share=0.1, by={by!r})", **more}


SOFT = {"objective": {"cross_entropy": {}, "kd": {"term": "kd(temperature=4.0)"}}}
RANDOM = "random rows"
STUDY = Study(
    name="selection",
    question="Which rows of a large batch should a student learn, if many labels are wrong?",
    base=START,
    axes={
        "arm": {
            RANDOM: {},
            "learnable rows": selected("learnability"),
            "easy rows": selected("easy"),
            "hard rows (broken variant)": selected("hard"),
            "random rows, and kd": SOFT,
            "learnable rows, and kd": selected("learnability", **SOFT),
        }
    },
    baseline=RANDOM,
    teachers={
        "clean": differ(
            START,
            seed=100,
            steps=1000,
            student={"model": "mlp(widths=(256, 256), classes=10)"},
            teachers={},
            data={"train": "clean", "augment": ("shift(pixels=2)",)},
        )
    },
    measures=(ACCURACY._replace(digits=1), Measure("nll", "NLL (nats)", digits=3)),
)

if __name__ == "__main__":
    sweep.main(STUDY, __doc__)
