"""SparseLogits classes of many: drawn from a distribution, and written in as few bytes as their numbers need.

Anshumann et al., Sparse Logit Sampling, 2025 (arxiv.org/abs/2503.16870): counts of k draws over k are the distribution
in expectation, so that the gradient of a forward KL to them is that of the KL itself in expectation; the k likeliest
classes made to sum to 1 are another distribution.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdistill.core.types import Array, SparseLogits

TILE = 256  # classes whose probabilities are summed at once, so that no sum is too long for float32
PAGE = 2**16  # classes that 16 bits tell apart


def draws(logits: Array, keys: Array, count: int) -> Array:
    """Classes drawn from softmax(logits), `[*batch, count]` int32, rising; one that is drawn twice stands there twice.

    One is drawn in each of `count` equal parts of the distribution: a class of probability p is expected `count p`
    times, as among independent draws, and its count varies less.

    Args:
        logits: `[*batch, classes]`.
        keys: of each row, `[*batch]`.
        count: how many.
    """
    p = jax.nn.softmax(logits.astype(jnp.float32))
    p = jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, -p.shape[-1] % TILE)])
    p = p.reshape(*logits.shape[:-1], -1, TILE)
    uniform = jnp.vectorize(lambda key: jax.random.uniform(key, (count,)), signature="()->(k)")(keys)
    mass = jnp.sum(p, axis=-1)
    upto = jnp.cumsum(mass, axis=-1)
    goal = (jnp.arange(count) + uniform) / count * upto[..., -1:]
    tile = _reached(mass, upto, goal)
    before = jnp.take_along_axis(upto - mass, tile, axis=-1)
    own = jnp.take_along_axis(p, tile[..., None], axis=-2)
    place = _reached(own, jnp.cumsum(own, axis=-1), (goal - before)[..., None])[..., 0]
    return tile * TILE + place


def keys_of(records: Array, batch: tuple[int, ...]) -> Array:
    """Keys to draw with, `[*batch]`: of every record, and of each of its tokens, one that is always the same.

    Args:
        records: their numbers, `[rows]`.
        batch: `(rows, *extent)`.
    """
    keys = jax.vmap(lambda record: jax.random.fold_in(jax.random.key(0), record))(records)
    for size in batch[1:]:
        keys = jnp.vectorize(jax.random.fold_in)(keys[..., None], jnp.arange(size))
    return keys


def _reached(mass: Array, upto: Array, goal: Array) -> Array:
    """The first place at which the sum of the masses is above each goal; none where the mass is 0."""
    last = mass.shape[-1] - 1 - jnp.argmax(mass[..., ::-1] > 0, axis=-1)
    found = jnp.sum(upto[..., None, :] <= goal[..., None], axis=-1)
    return jnp.minimum(found, last[..., None]).astype(jnp.int32)  # rounding may leave the last sum below a goal


def counted(drawn: Array, classes: int, temperature: float) -> SparseLogits:
    """What draws say: each class with the logarithm of its share, times the temperature at which they were drawn.

    Args:
        drawn: `[*batch, count]`, rising.
        classes: how many there are.
        temperature: softmax(logits / temperature) are then the shares.
    """
    count = drawn.shape[-1]
    place = jnp.arange(count, dtype=jnp.int32)
    first = jnp.concatenate([jnp.ones_like(drawn[..., :1], bool), drawn[..., 1:] != drawn[..., :-1]], axis=-1)
    begins = jnp.where(first, place, count)
    begins = jnp.concatenate([begins[..., 1:], jnp.full_like(begins[..., :1], count)], axis=-1)
    runs = jax.lax.cummin(begins, axis=begins.ndim - 1, reverse=True) - place
    logits = temperature * jnp.log(runs.astype(jnp.float32) / count)
    return SparseLogits(jnp.where(first, drawn, classes), logits, jnp.full(drawn.shape[:-1], -jnp.inf), classes)


def packed(numbers: Array, classes: int) -> dict[str, Array]:
    """Rising class numbers `[..., k]` in 16 bits each, and how many lie below each page of 65,536 but the first.

    Args:
        numbers: int32.
        classes: how many there are.
    """
    pages = PAGE * jnp.arange(1, -(-classes // PAGE))
    low = {"classes": (numbers % PAGE).astype(jnp.uint16)}
    if not len(pages):
        return low
    below = jnp.sum(numbers[..., None, :] < pages[:, None], axis=-1)
    return low | {"pages": below.astype(jnp.uint8 if numbers.shape[-1] < 256 else jnp.uint16)}


def unpacked(written: Mapping[str, Array]) -> Array:
    """Inverse of `packed`."""
    low = written["classes"].astype(jnp.int32)
    if "pages" not in written:
        return low
    page = jnp.sum(jnp.arange(low.shape[-1])[:, None] >= written["pages"][..., None, :], axis=-1)
    return low + PAGE * page.astype(jnp.int32)
