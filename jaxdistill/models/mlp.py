"""Multilayer perceptron over flattened pixels: the smallest student."""

import itertools
import math

import jax
from flax import nnx

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.registry import models
from jaxdistill.core.types import Model, Outputs
from jaxdistill.models.layers import dropout, nudged, pixels, require_share
from jaxdistill.models.nnx import from_nnx


class Mlp(nnx.Module):
    """Linear layers with ReLU; hidden states are their activations, the first standing for the embedding."""

    def __init__(self, inputs: int, widths: tuple[int, ...], classes: int, rate: float, *, rngs: nnx.Rngs):
        sizes = (inputs, *widths)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.head = nnx.Linear(sizes[-1], classes, rngs=rngs)
        self.rate = rate

    def __call__(self, batch, *, train: bool, key) -> Outputs:
        image = batch["image"]
        x = pixels(image.reshape(image.shape[0], -1), self.head.kernel.dtype)
        states = []
        for number, layer in enumerate(self.layers):
            x = by_rows(jax.nn.relu(layer(x)))
            x = nudged(dropout(x, self.rate, train=train, key=jax.random.fold_in(key, number)), batch, number)
            states.append(x)
        return Outputs(by_rows(self.head(x)), tuple(states), embedding=x)


@models.register
def mlp(widths: tuple[int, ...], classes: int, dropout: float = 0.0) -> Model:
    """A multilayer perceptron over `image`.

    Args:
        widths: of its hidden layers, at least one.
        classes: how many logits.
        dropout: the share of activations dropped in training.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths names at least one positive width; got {widths}")

    require_share("dropout", dropout)

    def make(rngs: nnx.Rngs, batch) -> Mlp:
        return Mlp(math.prod(batch["image"].shape[1:]), widths, classes, dropout, rngs=rngs)

    return from_nnx(make)
