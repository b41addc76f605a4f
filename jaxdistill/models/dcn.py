"""Deep and cross network (DCN v2) for records of categories, such as clicks.

Source: Wang et al. 2021 (arxiv.org/abs/2008.13535).

Each category has a row in one embedding table. With x_0 the rows of a record side by side:

    crosses    x_l+1 = x_0 * (W_l x_l + b_l) + x_l     (elementwise product: feature crosses of degree l + 2)
    layers     h_l+1 = relu(V_l h_l + c_l), h_0 = x_0
    logits     of x_L and h_L side by side ("parallel" in the paper)

The table is most of such a model, so a student with fewer columns, in 8 or 4 bits, is smaller by a large factor.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, Outputs, RowsLike
from jaxdistill.models.layers import dropout, lookup, nudged, require_dropout_rate
from jaxdistill.models.nnx import from_nnx

FIELD = "categories"  # batch field `[batch, fields]`, row numbers of the embedding table


class Dcn(nnx.Module):
    """The network of DCN v2. Hidden states, `[batch, width]`, are the outputs of cross layers, then of ReLU layers."""

    def __init__(
        self,
        fields: int,
        categories: int,
        width: int,
        crosses: int,
        widths: tuple[int, ...],
        classes: int,
        rate: float,
        *,
        rngs: nnx.Rngs,
    ):
        inputs = fields * width
        self.embed = nnx.Embed(categories, width, embedding_init=nnx.initializers.normal(0.05), rngs=rngs)
        self.crosses = nnx.List([nnx.Linear(inputs, inputs, rngs=rngs) for _ in range(crosses)])
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise((inputs, *widths))])
        self.head = nnx.Linear((inputs if crosses else 0) + (widths or (0,))[-1], classes, rngs=rngs)
        self.rate = rate

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        rows: Int[Array, "batch fields"] = batch[FIELD]
        first: Float[Array, "batch inputs"] = by_rows(lookup(self.embed, rows).reshape(rows.shape[0], -1))
        states: list[Array] = []
        crossed = deep = first
        for layer in self.crosses:
            crossed = nudged(by_rows(first * layer(crossed) + crossed), batch, len(states))
            states.append(crossed)
        for layer in self.layers:
            number = len(states)
            hidden = by_rows(jax.nn.relu(layer(deep)))
            deep = nudged(dropout(hidden, self.rate, train=train, key=jax.random.fold_in(key, number)), batch, number)
            states.append(deep)
        parts = [x for x, is_used in ((crossed, self.crosses), (deep, self.layers)) if is_used]
        last = jnp.concatenate(parts, axis=-1)
        return Outputs(by_rows(self.head(last)), tuple(states), embedding=last)


@models.register
def dcn(
    categories: int,
    width: int,
    classes: int,
    crosses: int = 2,
    widths: tuple[int, ...] = (64,),
    dropout: float = 0.0,
) -> Model:
    """Build a deep and cross network (DCN v2), which reads the batch field `categories`, `[batch, fields]` integers.

    Each integer is the row of a category in one embedding table, which all fields share.

    Args:
        categories: number of rows of the embedding table, one for each category of all fields together.
        width: width of the embedding of a category.
        classes: number of classes.
        crosses: number of cross layers.
        widths: widths of the ReLU layers, which run in parallel with the cross layers.
        dropout: dropout rate of the outputs of the ReLU layers.

    Source: Wang et al. 2021, arxiv.org/abs/2008.13535.

    Raises:
        ValueError: there are neither cross layers nor ReLU layers, `crosses` is negative, or the dropout rate is out of
            range.
    """
    if crosses < 0 or not (crosses or widths):
        raise ValueError(f"crosses={crosses} with widths={widths}: give at least one cross, or one layer")
    require_dropout_rate("dropout", dropout)

    def make(rngs: nnx.Rngs, batch: RowsLike) -> Dcn:
        return Dcn(batch[FIELD].shape[1], categories, width, crosses, widths, classes, dropout, rngs=rngs)

    return from_nnx(make)
