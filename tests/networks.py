"""Models of the examples, built and compiled once for all tests, and the batches that they read."""

import functools

import batches
import jax
from examples import MODELS

from jaxdistill.core import registry

KEY = jax.random.key(0)
ROWS, CLASSES = 8, 5
INPUTS = {example.spec: example.inputs for table in MODELS.values() for example in table}


@functools.cache
def batch(inputs: str = "image"):
    return batches.BATCHES[inputs](rows=ROWS, classes=CLASSES)  # the last 2 rows are padding


@functools.cache
def built(spec: str):
    """Build a model; return it with its initial params and state."""
    model = registry.models.build(spec, "student.model")
    return model, *jax.jit(model.init)(KEY, batch(INPUTS.get(spec, "image")))


@functools.cache
def compiled(spec: str, train: bool):
    model, *_ = built(spec)

    def dense(params, state, batch):
        out, state = model.apply(params, state, batch, train=train, key=KEY)
        return out.dense(), state

    return jax.jit(dense)
