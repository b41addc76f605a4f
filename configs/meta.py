"""Meta distillation: a quiz of a hundred correct labels corrects a teacher that learned wrong ones.

Paper: Zhou, Xu and McAuley, BERT Learns to Teach, 2022 (arxiv.org/abs/2106.04570). For the teacher, 85 % of
the threes are labelled as fours and of the sevens as eights; a student that learns from it makes the same errors.
Command: python -m jaxdistill.main --config configs/meta.py --workdir runs/meta
Result (5 seeds): 88.6 %, static 73.2, tuned on the quiz 89.0; see experiments/meta.
For comparison, meta.py:static uses the teacher as it is, meta.py:tuned trains it on the quiz before the student learns
from it, and meta.py:labels uses it as it is and adds the quiz's labels as a loss term.
"""

from functools import cache

import numpy as np
from jaxdistill.registry import datasets

from jaxdistill import choose, make
from jaxdistill.core.packages import default_folder
from jaxdistill.data import open_records

STEPS = {
    "meta": "meta(inner_steps=1, inner_lr=0.01)",
    "static": "offline()",
    "tuned": "tuned_teacher(updates=100)",
    "labels": "offline()",
}


class Digits(list):
    """A list of records with their number of classes."""

    classes = 10


@datasets.register
@cache  # a run opens the data set several times
def mislabelled_digits(split: str, classes: tuple[int, ...] = (3, 7), share: float = 0.85) -> Digits:
    """Load digits with a field `wrong_label`: in a share of the rows of some classes, the next class."""
    records = open_records("mnist5k", split, default_folder(), "data", "train")
    fields = records.take(np.arange(len(records)))
    lied = np.isin(fields["label"], classes) & (np.random.default_rng(0).random(len(records)) < share)
    fields["wrong_label"] = (fields["label"] + lied) % 10
    return Digits({name: column[i] for name, column in fields.items()} for i in range(len(records)))


def get_config(word="meta"):
    step = choose(word, STEPS)
    objective = {"kd": {"term": "kd(temperature=4.0)"}}
    if word == "labels":
        objective["cross_entropy"] = {"stream": "quiz"}
    return make(
        title="Digits: a teacher with wrong labels",
        steps=1000,
        batch_size=100,
        student={"model": "mlp(widths=(128,), classes=10)"},
        teachers={"wrong": {"model": "mlp(widths=(256,), classes=10)", "steps": 400, "rate": "cosine(start=0.003)"}},
        objective=objective,
        task={"cross_entropy": {"term": "cross_entropy(target='wrong_label')"}},
        control=False,
        step=step,
        roles={} if step == "offline()" else {"teachers": {"optimizer": "adamw()", "rate": "0.0001"}},
        rate="cosine(start=0.003)",
        data={"name": "mislabelled_digits", "train": "train[:3900]"},
        streams={} if word == "static" else {"quiz": {"split": "train[3900:]", "batch_size": 100}},
    )
