"""Two-layer perceptrons as pure functions, for tests of steps whose gradients are taken by hand."""

import batches
import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Factored, Outputs

KEY = jax.random.key(0)


CLASSES, WIDTH = 3, 4


def speak(params, image):
    return jnp.tanh(image @ params["a"]) @ params["b"]


def perceptron(width: int, tokens: bool = False) -> Model:
    def init(key, batch):
        draw = lambda n, *shape: jax.random.normal(jax.random.fold_in(key, n), shape, batch["image"].dtype)
        return {"a": draw(0, WIDTH, width), "b": draw(1, width, CLASSES)}, {}

    def apply(params, state, batch, *, train, key):
        if tokens:
            return Outputs(Factored(jnp.tanh(batch["image"] @ params["a"]), params["b"])), state
        return Outputs(speak(params, batch["image"])), state

    return Model(init, apply)


def rows(seed: int, *shape: int) -> dict[str, jax.Array]:
    draw = np.random.default_rng(seed)
    mask = np.arange(shape[0]) < shape[0] - 2
    return {
        "image": jnp.asarray(draw.normal(size=(*shape, WIDTH)).astype(jnp.result_type(float))),
        "label": jnp.asarray(draw.integers(0, CLASSES, shape).astype(np.int32)),
        "mask": batches.single(np.broadcast_to(mask.reshape(-1, *[1] * (len(shape) - 1)), shape)),
    }


def counted(values, batch):
    return jnp.sum(jnp.where(batch["mask"] != 0, values, 0)) / jnp.sum(batch["mask"])
