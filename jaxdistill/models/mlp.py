"""Multilayer perceptron (Rumelhart, Hinton and Williams 1986, doi.org/10.1038/323533a0) over flattened pixels.

It is the smallest model family of this package.
"""

import itertools
import math

import jax
from flax import nnx

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, Outputs, RowsLike
from jaxdistill.models.layers import dropout, nudged, pixels, require_dropout_rate
from jaxdistill.models.nnx import from_nnx


class Mlp(nnx.Module):
    """A multilayer perceptron with ReLU; the hidden states are the outputs of the hidden layers, `[batch, width]` each.

    There is no embedding layer: the first hidden state is the output of the first hidden layer. `Outputs.embedding` is
    the last hidden state. `rate` is the dropout rate.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], classes: int, rate: float, *, rngs: nnx.Rngs):
        sizes = (inputs, *widths)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.head = nnx.Linear(sizes[-1], classes, rngs=rngs)
        self.rate = rate

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        image = batch["image"]
        x = pixels(image.reshape(image.shape[0], -1), self.head.kernel.dtype)  # [batch, height * width * channels]
        states = []
        for number, layer in enumerate(self.layers):
            x = by_rows(jax.nn.relu(layer(x)))
            x = nudged(dropout(x, self.rate, train=train, key=jax.random.fold_in(key, number)), batch, number)
            states.append(x)
        return Outputs(by_rows(self.head(x)), tuple(states), embedding=x)


@models.register
def mlp(widths: tuple[int, ...], classes: int, dropout: float = 0.0) -> Model:
    """Build a multilayer perceptron with ReLU, which reads the batch field `image`, flattened to a vector.

    Args:
        widths: widths of the hidden layers, at least one.
        classes: number of classes.
        dropout: dropout rate of the outputs of the hidden layers.

    Raises:
        ValueError: `widths` is empty, a width is not positive, or the dropout rate is out of range.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must have at least one entry, all positive; got {widths}")
    require_dropout_rate("dropout", dropout)

    def make(rngs: nnx.Rngs, batch: RowsLike) -> Mlp:
        return Mlp(math.prod(batch["image"].shape[1:]), widths, classes, dropout, rngs=rngs)

    return from_nnx(make)
