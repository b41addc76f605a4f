"""Generate text with a decoder, using cached keys and values.

The prompts, `[batch, length]`, are processed in one forward pass, which fills the cache. Then a `lax.while_loop` runs
one step per new token: a forward pass over one token per sequence, which attends to the cache, then a sample. All
shapes are static: the cache holds `length + steps - 1` tokens, and a sequence that has finished gets token 0 until all
sequences have finished.

All functions are pure, and the caller applies `jit`:
`jax.jit(functools.partial(generate, model, steps=20, temperature=0.0))` compiles once for all prompts of up to
`length` tokens.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import row_keys
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Array, Factored, PyTree


class Generated(NamedTuple):
    """Generated tokens, without the prompts.

    tokens: new tokens of each sequence, `[batch, steps]` int32; 0 after the last token of a sequence
    lengths: number of new tokens of each sequence, including the stop token, `[batch]` int32
    """

    tokens: Array
    lengths: Array


class _LoopState(NamedTuple):
    """The state of the loop over new tokens.

    step: number of tokens sampled so far for each sequence, int32 scalar
    cache: the model's state, which holds the cached keys and values
    token: the last token of each sequence, `[batch]` int32
    done: true for sequences that have generated a stop token, `[batch]`
    generated: the tokens sampled so far
    """

    step: Array
    cache: PyTree
    token: Array
    done: Array
    generated: Generated


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
    """Generate up to `steps` tokens after every prompt; stop early when all sequences have generated a stop token.

    Args:
        model: a model whose state is a key-value cache if the batch has the field `slots`, such as `decoder`.
        params: the model's parameters.
        prompts: padded token ids of the prompts, `[batch, length]` int32.
        lengths: number of tokens of each prompt without padding, `[batch]`, at least 1.
        key: random key of the samples; each sequence and step uses another key derived from it.
        steps: maximal number of new tokens.
        temperature: number by which the logits are divided; 0 selects the most likely token.
        top_k: sample only from the k most likely tokens, and ties with them (Fan et al. 2018,
            arxiv.org/abs/1805.04833); None means all tokens.
        top_p: sample only from the smallest set of most likely tokens with this total probability (Holtzman et al.
            2020, arxiv.org/abs/1904.09751); 1 means all tokens.
        stop: ids of the tokens that end a sequence.
        padding: side on which the prompts are padded.

    Raises:
        ValueError: a sampling setting is out of range, or the model has no cache.
    """
    _check(steps, temperature, top_k, top_p)
    rows, length = prompts.shape
    index = jnp.arange(length)[None]  # [1, length]
    if padding == "left":
        prompts = jnp.take_along_axis(prompts, (index - lengths[:, None]) % length, axis=1)
    slots = jnp.broadcast_to(jnp.arange(length + steps - 1), (rows, length + steps - 1))

    def forward(cache: PyTree, tokens: Array, positions: Array) -> tuple[Any, PyTree]:
        batch = {"input_ids": tokens, "positions": positions, "slots": slots}
        out, cache = model.apply(params, cache, batch, train=False, key=key)
        return out.logits, cache

    def sample(logits: Array | Factored, position: Array, step: Array) -> Array:
        step_key = jax.random.fold_in(key, step)
        return sample_tokens(_logits_at(logits, position), step_key, temperature, top_k, top_p)

    def advance(loop: _LoopState) -> _LoopState:
        logits, cache = forward(loop.cache, loop.token[:, None], (lengths + loop.step - 1)[:, None])
        return _append(loop, cache, sample(logits, jnp.zeros_like(lengths), loop.step), stop)

    logits, cache = forward(empty_cache(model, slots), prompts, jnp.broadcast_to(index, prompts.shape))
    start = _initial_state(cache, rows, steps)
    loop = _append(start, cache, sample(logits, lengths - 1, start.step), stop)
    return jax.lax.while_loop(lambda loop: (loop.step < steps) & ~loop.done.all(), advance, loop).generated


def _check(steps: int, temperature: float, top_k: int | None, top_p: float) -> None:
    if steps < 1 or temperature < 0 or not 0 < top_p <= 1 or (top_k is not None and top_k < 1):
        raise ValueError(
            "steps and top_k must be positive, temperature must not be negative, and top_p must be in (0, 1]; "
            f"got steps={steps}, top_k={top_k}, temperature={temperature}, top_p={top_p}"
        )


def _initial_state(cache: PyTree, rows: int, steps: int) -> _LoopState:
    """Return the state of the loop before the first token is sampled; `cache` already holds the prompts."""
    nothing = Generated(jnp.zeros((rows, steps), jnp.int32), jnp.zeros(rows, jnp.int32))
    return _LoopState(jnp.zeros((), jnp.int32), cache, jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool), nothing)


def _append(loop: _LoopState, cache: PyTree, token: Array, stop: tuple[int, ...]) -> _LoopState:
    """Append a sampled token to each sequence; `token` is `[batch]`, and a sequence that is done gets 0 instead."""
    token = jnp.where(loop.done, 0, token)
    tokens = loop.generated.tokens.at[:, loop.step].set(token)
    generated = Generated(tokens, loop.generated.lengths + ~loop.done)
    done = loop.done | jnp.isin(token, jnp.asarray(stop, jnp.int32))
    return _LoopState(loop.step + 1, cache, token, done, generated)


def empty_cache(model: Model, slots: Array | jax.ShapeDtypeStruct) -> PyTree:
    """Create a model's state with an empty key-value cache, which holds `slots.shape[1]` tokens per sequence.

    Args:
        model: a model whose state is a key-value cache if the batch has the field `slots`, such as `decoder`.
        slots: indices of the cached tokens, 0, 1, 2, ... for each sequence, `[batch, slots]`.

    Raises:
        ValueError: the model has no cache.
    """
    token = jax.ShapeDtypeStruct((slots.shape[0], 1), jnp.int32)
    batch = {"input_ids": token, "positions": token, "slots": slots}
    _, state = jax.eval_shape(model.init, jax.random.key(0), batch)
    if not state:
        raise ValueError("the model keeps no cache of keys and values; use a decoder to generate text")
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)


def sample_tokens(logits: Array, key: Array, temperature: float, top_k: int | None, top_p: float) -> Array:
    """Sample one token for each row of logits, `[batch, classes] -> [batch]` int32.

    Args:
        logits: unnormalised log-probabilities of the tokens, `[batch, classes]`.
        key: random key; each row uses another key derived from it.
        temperature: number by which the logits are divided; 0 selects the most likely token.
        top_k: sample only from the k most likely tokens, and ties with them; None means all tokens.
        top_p: sample only from the smallest set of most likely tokens with this total probability; 1 means all tokens.
    """
    logits = logits.astype(jnp.float32)
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(logits, top_k)[0][:, -1:]  # [batch, 1]
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    if top_p < 1:
        # Keep a token if the tokens that are more likely than it have less than top_p together
        sorted_logits = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(sorted_logits)
        kept = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p
        threshold = jnp.min(jnp.where(kept, sorted_logits, jnp.inf), axis=-1, keepdims=True)  # [batch, 1]
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(row_keys(key, logits.shape[0]), logits).astype(jnp.int32)


def _logits_at(logits: Array | Factored, position: Array) -> Array:
    """Return the logits of each sequence at its `position`, `[batch, length, classes] -> [batch, classes]`.

    If the logits are `Factored` (features and a kernel), only the logits of these positions are computed.
    """
    select = lambda x: x[jnp.arange(x.shape[0]), position]
    if isinstance(logits, Factored):
        return dataclasses.replace(logits, features=select(logits.features)).dense()
    return select(logits)
