"""Data sets whose teachers are each right on some inputs, and a model with a dead layer."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core import registry
from jaxdistill.core.packages import default_folder
from jaxdistill.core.sums import masked_mean
from jaxdistill.data import open_records
from jaxdistill.run.config import make
from jaxdistill.steps.observe import observe

CALIBRATION, FEW = 200, 100  # labelled records for the gate, and for a student that also learns from labels
SPECIALTIES = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))


class Digits(list):
    classes = 10


@registry.datasets.register
@cache  # a run opens the data set a dozen times
def digits(split: str, domain: int = -1, shuffled: bool = False, specialty: int = -1):
    """Load MNIST digits of 14x14 pixels, half of them negatives: white on black is domain 0, black on white domain 1.

    The fields `domain` and `expert` are a record's domain and group of classes.

    Args:
        split: "transfer", "few" (the first 100 of these), "calibration" (200 others) or "test".
        domain: only records of this domain; -1: all.
        shuffled: permute the labels among the records.
        specialty: only records of this one of three groups of classes; -1: all.
    """
    records = open_records("mnist5k", "test" if split == "test" else "train", default_folder(), "data", "train")
    ranges = {"test": (0, None), "calibration": (0, CALIBRATION), "transfer": (CALIBRATION, None)}
    rows = np.arange(len(records))[slice(*(ranges | {"few": (CALIBRATION, CALIBRATION + FEW)})[split])]
    fields = records.take(rows)
    image, label = fields["image"].reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)), fields["label"]
    domain_of_row = (rows // 10) % 2  # classes take turns in the records, so each domain has equally many of each class
    image = np.where(domain_of_row[:, None, None, None] == 1, 255 - image, image).round().astype(np.uint8)
    expert = np.array([next(k for k, some in enumerate(SPECIALTIES) if y in some) for y in label])
    if shuffled:
        label = np.random.default_rng(0).permutation(label)
    kept = ((domain < 0) | (domain_of_row == domain)) & ((specialty < 0) | (expert == specialty))
    columns = {"image": image, "label": label.astype(np.int32), "domain": domain_of_row, "expert": expert}
    return Digits({name: x[row] for name, x in columns.items()} for row in np.flatnonzero(kept))


@registry.models.register
def dead_end(widths: tuple[int, ...] = (256, 256), classes: int = 10):
    """A perceptron with one further hidden state, which is always zero."""
    plain = registry.models["mlp"](widths=widths, classes=classes)

    def apply(params, state, batch, *, train, key):
        out, state = plain.apply(params, state, batch, train=train, key=key)
        states = out.hidden_states
        return replace(out, hidden_states=(*states, jnp.zeros_like(states[-1]))), state

    return plain._replace(apply=apply)


@registry.steps.register
def watched(
    student,
    teachers,
    objective,
    optimizer,
    by: str = "calibration",
    right: str = "",
    probes: tuple[int, ...] = (),
):
    """Run the step `routing` and also log the gate's weight on the right teacher, as the metric `gate/right`.

    Args:
        by: see `routing`.
        probes: see `routing`.
        right: the field with the number of the teacher that is right; empty: log the weight of the first path.
    """
    step = registry.steps["routing"](student, teachers, objective, optimizer, by=by, probes=probes)

    def update(ts, frozen, batch):
        after, metrics = step.update(ts, frozen, batch)
        key = jax.random.fold_in(ts.key, ts.step)
        when = {"step": ts.step, "key": key}
        signals = observe(student, teachers, ts.params, ts.state, frozen, batch, ("train",), **when)[0]["train"]
        fused = objective.fuse(ts.params, ts.state, signals, key=key)[0].teacher
        rows = jnp.arange(signals.mask.shape[0])
        weight = fused.weights[signals.batch[right], rows] if right else fused.routes[0]
        return after, metrics | {"gate/right": masked_mean(weight, signals.mask)}

    return step._replace(update=update)


def base(**differences):
    """Make the config that all students share: a perceptron that sees no label, 400 steps."""
    shared = {
        "title": "Routing",
        "steps": 400,
        "student": {"model": "mlp(widths=(128,), classes=10)"},
        "objective": {"kd": {"term": "kd(temperature=4.0)"}},
        "task": {"cross_entropy": {}},
        "control": False,
        "optimizer": "adamw(weight_decay=0.0001)",
        "rate": "cosine(start=0.003)",
        "data": {"name": "digits()", "train": "transfer"},
        "evaluate": {"every": 400, "batch_size": 500, "layers": ()},
        "logging": {"tensorboard": False, "every": 100},
        "mesh": {"data": 1},
    }
    return make(**shared | differences)
