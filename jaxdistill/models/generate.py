"""Text from a decoder: a prompt is read once, then each new token is one step over cached keys and values.

Pure functions, to be jitted by their caller: `jax.jit(functools.partial(generate, model, steps=20, temperature=0.0))`
is compiled once for all prompts of up to `length` tokens.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import row_keys
from jaxdistill.core.types import Array, Factored, Model, PyTree


class Generated(NamedTuple):
    """What was drawn.

    tokens: `[rows, steps]` int32, 0 behind a row's last one
    lengths: how many tokens each row has, its stop token included, `[rows]` int32
    """

    tokens: Array
    lengths: Array


class _Loop(NamedTuple):
    step: Array  # how many tokens have been drawn for each row
    cache: PyTree
    token: Array
    done: Array
    out: Generated


def generate(
    model: Model,
    params: PyTree,
    prompts: Array,
    lengths: Array,
    key: Array,
    *,
    steps: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop: tuple[int, ...] = (),
    padding: Literal["left", "right"] = "right",
) -> Generated:
    """Continues every prompt by up to `steps` tokens; ends early when all rows have met a stop token.

    Args:
        model: one that keeps a cache when its batch has `slots`, such as a decoder.
        params: its parameters.
        prompts: `[rows, length]` int32.
        lengths: how many tokens of each prompt are real, `[rows]`, 1 at least.
        key: each row and each step draws with a key of its own.
        steps: the most tokens to add.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among the k likeliest tokens (Fan et al. 2018, arxiv.org/abs/1805.04833), and ties; None: all.
        top_p: draw among the fewest tokens that hold this share (Holtzman et al. 2020, arxiv.org/abs/1904.09751).
        stop: tokens that end a row.
        padding: on which side of a prompt its padding stands.

    Raises:
        ValueError: settings that draw nothing, or a model without a cache.
    """
    _check(steps, temperature, top_k, top_p)
    rows, length = prompts.shape
    index = jnp.arange(length)[None]
    if padding == "left":
        prompts = jnp.take_along_axis(prompts, (index - lengths[:, None]) % length, axis=1)
    slots = jnp.broadcast_to(jnp.arange(length + steps - 1), (rows, length + steps - 1))

    def read(cache: PyTree, tokens: Array, positions: Array) -> tuple[Any, PyTree]:
        batch = {"input_ids": tokens, "positions": positions, "slots": slots}
        out, cache = model.apply(params, cache, batch, train=False, key=key)
        return out.logits, cache

    def drawn(logits: Array | Factored, last: Array, step: Array) -> Array:
        return draw(_at(logits, last), jax.random.fold_in(key, step), temperature, top_k, top_p)

    def advance(loop: _Loop) -> _Loop:
        logits, cache = read(loop.cache, loop.token[:, None], (lengths + loop.step - 1)[:, None])
        return _recorded(loop, cache, drawn(logits, jnp.zeros_like(lengths), loop.step), stop)

    logits, cache = read(empty_cache(model, slots), prompts, jnp.broadcast_to(index, prompts.shape))
    begun = _begun(cache, rows, steps)
    loop = _recorded(begun, cache, drawn(logits, lengths - 1, begun.step), stop)
    return jax.lax.while_loop(lambda loop: (loop.step < steps) & ~loop.done.all(), advance, loop).out


def _check(steps: int, temperature: float, top_k: int | None, top_p: float) -> None:
    if steps < 1 or temperature < 0 or not 0 < top_p <= 1 or (top_k is not None and top_k < 1):
        raise ValueError(
            "steps and top_k are positive, temperature is not negative, top_p is above 0 and at most 1; "
            f"got steps={steps}, top_k={top_k}, temperature={temperature}, top_p={top_p}"
        )


def _begun(cache: PyTree, rows: int, steps: int) -> _Loop:
    """Before the first token is drawn."""
    none = Generated(jnp.zeros((rows, steps), jnp.int32), jnp.zeros(rows, jnp.int32))
    return _Loop(jnp.zeros((), jnp.int32), cache, jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool), none)


def _recorded(loop: _Loop, cache: PyTree, token: Array, stop: tuple[int, ...]) -> _Loop:
    """After a token was drawn for each row; a row that is done gets 0."""
    token = jnp.where(loop.done, 0, token)
    out = Generated(loop.out.tokens.at[:, loop.step].set(token), loop.out.lengths + ~loop.done)
    done = loop.done | jnp.isin(token, jnp.asarray(stop, jnp.int32))
    return _Loop(loop.step + 1, cache, token, done, out)


def empty_cache(model: Model, slots: Array) -> PyTree:
    """The state of a model that shall read up to `slots.shape[1]` tokens.

    Args:
        model: one that keeps a cache when its batch has `slots`.
        slots: 0, 1, 2, ... in each row, `[rows, slots]`.

    Raises:
        ValueError: it keeps none.
    """
    token = jax.ShapeDtypeStruct((slots.shape[0], 1), jnp.int32)
    batch = {"input_ids": token, "positions": token, "slots": slots}
    _, state = jax.eval_shape(model.init, jax.random.key(0), batch)
    if not state:
        raise ValueError("this model keeps no cache of keys and values; text is generated by a decoder")
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)


def draw(logits: Array, key: Array, temperature: float, top_k: int | None, top_p: float) -> Array:
    """One token for each row of `[rows, classes]`; the arguments are those of `generate`."""
    logits = logits.astype(jnp.float32)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p < 1:
        sorted_logits = jnp.sort(logits, axis=-1, descending=True)
        share = jax.nn.softmax(sorted_logits)
        needed = jnp.cumsum(share, axis=-1) - share < top_p
        least = jnp.min(jnp.where(needed, sorted_logits, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(row_keys(key, logits.shape[0]), logits).astype(jnp.int32)


def _at(logits: Array | Factored, index: Array) -> Array:
    """Each row's logits at one position, `[rows, classes]`; of a factored head no others are ever formed."""
    here = lambda x: x[jnp.arange(x.shape[0]), index]
    if isinstance(logits, Factored):
        return dataclasses.replace(logits, features=here(logits.features)).dense()
    return here(logits)
