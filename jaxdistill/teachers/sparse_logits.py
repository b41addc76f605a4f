"""Sparse logits: draw classes from a distribution, compute logits from the draws, and store class numbers compactly.

Anshumann et al., Sparse Logit Sampling, 2025 (arxiv.org/abs/2503.16870): in expectation, the frequencies of k draws
equal the distribution, and the gradient of a forward KL to the frequencies equals that of the KL to the distribution.
The k most probable classes, renormalised to sum to 1, are another distribution.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdistill.core.types import Array, SparseLogits

TILE = 256  # classes whose probabilities are summed at once, to keep float32 sums short
PAGE = 2**16  # number of classes that 16 bits can encode


def draw_classes(logits: Array, keys: Array, count: int) -> Array:
    """Sample classes from softmax(logits), `[*batch, count]` int32, in rising order and with repetition.

    The draws are stratified: one class is drawn in each of `count` equal parts of the cumulative distribution. A class
    of probability p is drawn `count p` times on average, as with independent draws, but with a smaller variance.

    Args:
        logits: `[*batch, classes]`.
        keys: PRNG key of each example or token, `[*batch]`.
        count: number of draws.
    """
    p = jax.nn.softmax(logits.astype(jnp.float32))
    p = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, -p.shape[-1] % TILE)])
    p = p.reshape(*logits.shape[:-1], -1, TILE)
    uniform = jnp.vectorize(lambda key: jax.random.uniform(key, (count,)), signature="()->(k)")(keys)
    mass = jnp.sum(p, axis=-1)
    cumulative = jnp.cumsum(mass, axis=-1)
    goal = (jnp.arange(count) + uniform) / count * cumulative[..., -1:]
    tile = _first_above(mass, cumulative, goal)
    before = jnp.take_along_axis(cumulative - mass, tile, axis=-1)
    tile_p = jnp.take_along_axis(p, tile[..., None], axis=-2)
    offset = _first_above(tile_p, jnp.cumsum(tile_p, axis=-1), (goal - before)[..., None])[..., 0]
    return tile * TILE + offset


def draw_keys(records: Array, batch: tuple[int, ...]) -> Array:
    """Return a PRNG key for each example or token of a batch, `[*batch]`, with which `draw_classes` samples.

    A key depends only on the index of the example in the data set and the position of the token. So the samples do not
    depend on the other examples of the batch.

    Args:
        records: index in the data set of each example of the batch, `[rows]`.
        batch: the shape `*batch`: `(rows,)`, or `(rows, length)` for texts.
    """
    keys = jax.vmap(lambda record: jax.random.fold_in(jax.random.key(0), record))(records)
    for size in batch[1:]:
        keys = jnp.vectorize(jax.random.fold_in)(keys[..., None], jnp.arange(size))
    return keys


def _first_above(mass: Array, cumulative: Array, goal: Array) -> Array:
    """Return for each goal the first index at which the cumulative sum exceeds it, `[..., goals]` int32.

    This is the inverse of a cumulative distribution function. An index of probability 0 is never returned.

    Args:
        mass: probabilities, `[..., n]`.
        cumulative: cumulative sums of the probabilities, `[..., n]`.
        goal: values to look up in the cumulative sums, `[..., goals]`.
    """
    last = mass.shape[-1] - 1 - jnp.argmax(mass[..., ::-1] > 0, axis=-1)
    index = jnp.sum(cumulative[..., None, :] <= goal[..., None], axis=-1)
    return jnp.minimum(index, last[..., None]).astype(jnp.int32)  # by rounding, the last sum may be below a goal


def logits_of_draws(drawn: Array, classes: int, temperature: float) -> SparseLogits:
    """Compute logits z from sampled classes, so that softmax(z / temperature) equals the frequencies of the samples.

    A class that was drawn n times in k draws has `z = temperature * log(n / k)`. A class that was never drawn has -inf.

    Args:
        drawn: the k drawn classes in rising order, `[*batch, k]`.
        classes: number of classes.
        temperature: temperature of the distribution from which the classes were drawn.
    """
    count = drawn.shape[-1]
    position = jnp.arange(count, dtype=jnp.int32)
    first = jnp.concatenate([jnp.ones_like(drawn[..., :1], bool), drawn[..., 1:] != drawn[..., :-1]], axis=-1)
    next_start = jnp.where(first, position, count)
    next_start = jnp.concatenate([next_start[..., 1:], jnp.full_like(next_start[..., :1], count)], axis=-1)
    runs = jax.lax.cummin(next_start, axis=next_start.ndim - 1, reverse=True) - position
    logits = temperature * jnp.log(runs.astype(jnp.float32) / count)
    return SparseLogits(jnp.where(first, drawn, classes), logits, jnp.full(drawn.shape[:-1], -jnp.inf), classes)


def pack_classes(numbers: Array, classes: int) -> dict[str, Array]:
    """Pack sorted class indices into 16 bits each, as a dict with the fields `classes` and, if needed, `pages`.

    The field `classes` has the low 16 bits of each index, `[..., k]` uint16. The high bits follow from the order: for
    each multiple of 65,536 below the number of classes, the field `pages` counts the indices that are smaller than it.
    With at most 65,536 classes, there is no field `pages`.

    Args:
        numbers: class indices in rising order, `[..., k]` int32.
        classes: number of classes.
    """
    pages = PAGE * jnp.arange(1, -(-classes // PAGE))
    low = {"classes": (numbers % PAGE).astype(jnp.uint16)}
    if not len(pages):
        return low
    below = jnp.sum(numbers[..., None, :] < pages[:, None], axis=-1)
    return low | {"pages": below.astype(jnp.uint8 if numbers.shape[-1] < 256 else jnp.uint16)}


def unpack_classes(packed: Mapping[str, Array]) -> Array:
    """Return the class indices, `[..., k]` int32, that `pack_classes` packed into 16 bits each.

    Args:
        packed: the fields that `pack_classes` returned.
    """
    low = packed["classes"].astype(jnp.int32)
    if "pages" not in packed:
        return low
    page = jnp.sum(jnp.arange(low.shape[-1])[:, None] >= packed["pages"][..., None, :], axis=-1)
    return low + PAGE * page.astype(jnp.int32)
