"""Test what a student learns from soft targets about a digit that it never saw (study: `experiments/missing_class`)."""

import jax
import numpy as np
import pytest
from examples import HORIZON
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.packages import default_folder
from jaxdistill.core.schedules import resolve
from jaxdistill.core.types import Variables
from jaxdistill.data.datasets import open_records
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.losses.term import stateless

KEY, MISSING, STEPS = jax.random.key(0), 3, 400


def digits(split: str):
    records = open_records("mnist5k", split, default_folder(), "data", "split")
    found = records.take(np.arange(len(records)))
    image = found["image"].reshape(-1, 14, 2, 14, 2, 1).mean((2, 4)).astype(np.uint8)  # pooled: a quarter of the time
    return image, found["label"]


def learn(term, rows, teachers=(), frozen=()):
    """Train an MLP offline with one loss term, for 400 steps of 100 rows each; return the model and its variables."""
    image, label = rows
    student = registry.models.build("mlp(widths=(128,), classes=10)", "")
    update = optimizer(registry.optimizers["adamw"](), resolve("0.003", HORIZON, ""))
    minimised = objective({"term": WeightedTerm(term)}, registry.fusions["single"]())
    step = registry.steps["offline"](student, teachers, minimised, update)
    draw = np.random.default_rng(0)

    def batch():
        chosen = draw.choice(len(label), 100, replace=False)
        return {"train": {"image": image[chosen], "label": label[chosen], "mask": np.ones(100, np.float32)}}

    state, update = jax.jit(step.init)(KEY, frozen, batch()), jax.jit(step.update, donate_argnums=0)
    for _ in range(STEPS):
        state, _ = update(state, frozen, batch())
    return student, Variables(state.params["student"], state.state["student"])


def recall(student, variables, rows) -> float:
    """Return the recall of the missing digit, in %."""
    image, label = rows
    batch = {"image": image, "mask": np.ones(len(label))}
    logits = jax.jit(lambda v: student.apply(*v, batch, train=False, key=KEY)[0].logits)(variables)
    return 100 * float((np.asarray(logits).argmax(-1) == MISSING)[label == MISSING].mean())


def argmax_labels():
    """Build a loss term that teaches only the teacher's most probable class, and not its whole distribution."""
    values = lambda signals: softmax_cross_entropy(signals.student.logits, signals.teacher.logits.argmax(-1))
    return stateless(values, needs=frozenset({"teacher"}))


@pytest.mark.slow
def test_soft_targets_tell_of_a_digit_that_was_never_seen_and_the_teachers_argmax_does_not():
    """Check that recall of the unseen digit is high with soft targets and low with argmax (measured: 78 and 1 %)."""
    image, label = digits("train")
    teacher, taught = learn(build_loss("cross_entropy"), (image, label))
    seen = label != MISSING
    known = {
        name: recall(*learn(term, (image[seen], label[seen]), (teacher,), (taught,)), digits("test"))
        for name, term in (("kd", build_loss("kd(temperature=8.0)")), ("argmax", argmax_labels()))
    }
    assert known["kd"] > 50
    assert known["argmax"] < 20
