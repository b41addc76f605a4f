"""Two domains, two teachers that are each right on one of them, and a student whose gate chooses between them."""

import jax
import jax.numpy as jnp
import numpy as np
from terms import build_loss

from jaxdistill.core import registry
from jaxdistill.core.interfaces import Fusion, Model
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.spec import parse
from jaxdistill.core.types import Outputs, Variables

KEY = jax.random.key(0)
WIDTH, CLASSES = 6, 4
STUDENT = f"mlp(widths=(16, 16), classes={CLASSES})"
GATE = "gate(inputs=('image',), width=16)"


def talker(rule, calls: list | None = None) -> Model:
    """Make a teacher without parameters that predicts `rule(batch)`; a call appends its number of rows to `calls`."""

    def apply(params, state, batch, *, train, key):
        if calls is not None:
            jax.debug.callback(lambda rows: calls.append(len(rows)), batch["image"])
        said = rule(batch)
        return Outputs(jnp.log(said), (said, said), embedding=said), state

    return Model(lambda key, batch: ({}, {}), apply)


def rows(seed: int = 0, count: int = 64) -> dict[str, jax.Array]:
    """Draw images whose first pixel determines their domain, and the next pixels their label."""
    draw = np.random.default_rng(seed)
    label, domain = draw.integers(0, CLASSES, count), draw.integers(0, 2, count)
    image = draw.normal(0, 0.1, (count, WIDTH))
    image[np.arange(count), 1 + label] += 1
    image[:, 0] = 2 * domain - 1
    given = {
        "image": image.reshape(count, WIDTH, 1, 1),
        "label": label,
        "truth": label,
        "domain": domain,
        "mask": np.ones(count),
    }
    return {name: jnp.asarray(x.astype(np.float32 if x.dtype == float else np.int32)) for name, x in given.items()}


def right_on(domain: int):
    """Return the rule of a teacher that is right on one domain, and surely wrong by one class on the other."""

    def rule(batch):
        said = jnp.where(batch["domain"] == domain, batch["truth"], (batch["truth"] + 1) % CLASSES)
        return 0.9 * jax.nn.one_hot(said, CLASSES) + 0.1 / CLASSES

    return rule


def world(spec: str, teachers, fusion: str | Fusion = GATE, terms=("kd",), direction="adamw"):
    student = registry.models.build(STUDENT, "")
    weighted = {name: WeightedTerm(build_loss(name)) for name in terms}
    minimised = objective(weighted, fusion if isinstance(fusion, Fusion) else registry.fusions.build(fusion, ""))
    update = optimizer(registry.optimizers.build(direction, ""), 0.02)
    parsed = parse(spec, "")
    parts = {"student": student, "teachers": tuple(teachers), "objective": minimised, "optimizer": update}
    step = registry.steps.build(parsed._replace(kwargs=parsed.kwargs | parts), "")
    frozen = tuple(Variables({}, {}) for _ in teachers)
    return step, frozen, student


def trained(step, frozen, batches, updates: int = 150):
    state = jax.jit(step.init)(KEY, frozen, batches)
    update = jax.jit(step.update)
    for _ in range(updates):
        state, metrics = update(state, frozen, batches)
    return state, {name: float(metric.compute()) for name, metric in jax.device_get(metrics).items()}


BOTH = (talker(right_on(0)), talker(right_on(1)))
