"""Digits in which teachers are right here and wrong there, and teachers of which a layer is dead."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core import registry
from jaxdistill.core.packages import default_folder
from jaxdistill.core.sums import mean_of
from jaxdistill.data import open_records
from jaxdistill.run.config import make
from jaxdistill.steps.observe import observe

CALIBRATION, FEW = 200, 100  # records with labels for the gate, and for a student that learns from labels too
SPECIALTIES = ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))


class Digits(list):
    classes = 10


@registry.datasets.register
@cache  # a run asks a dozen times
def digits(split: str, domain: int = -1, shuffled: bool = False, specialty: int = -1):
    """MNIST digits of 14x14 pixels, half of them negatives: white on black is domain 0, black on white domain 1.

    Args:
        split: "transfer", "few" (the first 100 of these), "calibration" (200 others) or "test".
        domain: the records of one domain alone, or all.
        shuffled: with labels of other records.
        specialty: the records of one of three groups of classes alone, or all. `expert` is the group of a record.
    """
    records = open_records("mnist5k", "test" if split == "test" else "train", default_folder(), "data", "train")
    parts = {"test": (0, None), "calibration": (0, CALIBRATION), "transfer": (CALIBRATION, None)}
    rows = np.arange(len(records))[slice(*(parts | {"few": (CALIBRATION, CALIBRATION + FEW)})[split])]
    found = records.take(rows)
    image, label = found["image"].reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)), found["label"]
    place = (rows // 10) % 2  # classes take turns, so each domain has as many of each
    image = np.where(place[:, None, None, None] == 1, 255 - image, image).round().astype(np.uint8)
    expert = np.array([next(k for k, some in enumerate(SPECIALTIES) if y in some) for y in label])
    if shuffled:
        label = np.random.default_rng(0).permutation(label)
    kept = ((domain < 0) | (place == domain)) & ((specialty < 0) | (expert == specialty))
    given = {"image": image, "label": label.astype(np.int32), "domain": place, "expert": expert}
    return Digits({name: x[row] for name, x in given.items()} for row in np.flatnonzero(kept))


@registry.models.register
def dead_end(widths: tuple[int, ...] = (256, 256), classes: int = 10):
    """A perceptron with one hidden state more, which says nothing."""
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
    """`routing`, and beside its metrics what the gate gives, on the records learned from, to whom it should.

    Args:
        by, probes: as of `routing`.
        right: the field with the number of the teacher that is right; empty: the first path.
    """
    step = registry.steps["routing"](student, teachers, objective, optimizer, by=by, probes=probes)

    def update(ts, frozen, batch):
        after, metrics = step.update(ts, frozen, batch)
        key = jax.random.fold_in(ts.key, ts.step)
        look = {"step": ts.step, "key": key}
        seen = observe(student, teachers, ts.params, ts.state, frozen, batch, ("train",), **look)[0]["train"]
        fused = objective.fuse(ts.params, ts.state, seen, key=key)[0].teacher
        rows = jnp.arange(seen.mask.shape[0])
        weight = fused.weights[seen.batch[right], rows] if right else fused.routes[0]
        return after, metrics | {"gate/right": mean_of(weight, seen.mask)}

    return step._replace(update=update)


def base(**differences):
    """What all students share: a perceptron that sees no label, 400 steps."""
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
