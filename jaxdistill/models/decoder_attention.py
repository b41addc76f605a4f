"""Causal attention of decoder language models, with grouped queries and a key-value cache.

Ainslie et al., GQA, 2023 (arxiv.org/abs/2305.13245). Rotary positions are those of `rotary.py`.
"""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, AttentionHeads
from jaxdistill.models.rotary import rotate


class Sizes(NamedTuple):
    """The sizes and options of a decoder block.

    width: width of the residual stream
    heads: number of query heads
    kv_heads: number of key heads, and of value heads
    head_size: units of one head
    ffn: width of the gated perceptron
    epsilon: value added to the mean square in the norms
    qkv_bias: if true, queries, keys and values have biases
    qk_norm: if true, the queries and keys of every head are normalised
    attentions: if true, the block returns the attention probabilities
    attention: implementation of `jax.nn.dot_product_attention`; unused if `attentions` is true, because this function
        returns no probabilities
    """

    width: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    epsilon: float
    qkv_bias: bool
    qk_norm: bool
    attentions: bool
    attention: Literal["xla", "cudnn"] = "xla"


class SharedInputs(NamedTuple):
    """The inputs that all blocks of a decoder share in one forward pass.

    angles: angles of the rotary position embedding, `[batch or 1, length, head_size / 2]`
    positions: index in the key-value cache at which each token is written, `[batch, length]`; None without a cache
    mask: true where a query may attend to a key, `[batch or 1, 1, length or 1, keys]`; None means true everywhere
    causal: if true, a query may attend only to the same and earlier keys, in addition to the condition of `mask`
    """

    angles: Float[Array, "#batch length half_head"]
    positions: Integer[Array, "batch length"] | None
    mask: Bool[Array, "#batch 1 #length keys"] | None
    causal: bool


class Attention(nnx.Module):
    """Causal self-attention with grouped queries, `[batch, length, width] -> [batch, length, width]`.

    Args:
        sizes: sizes and options of the block.
        slots: `(batch, tokens)` of the key-value cache, which holds this number of tokens for each sequence, as two
            arrays `[batch, tokens, kv_heads, head_size]`; None means that keys and values are not cached.
        rngs: random streams of the initial parameters.
    """

    def __init__(self, sizes: Sizes, slots: tuple[int, ...] | None, *, rngs: nnx.Rngs):
        project = lambda heads: nnx.Linear(sizes.width, heads * sizes.head_size, use_bias=sizes.qkv_bias, rngs=rngs)
        self.query, self.key, self.value = project(sizes.heads), project(sizes.kv_heads), project(sizes.kv_heads)
        self.out = nnx.Linear(sizes.heads * sizes.head_size, sizes.width, use_bias=False, rngs=rngs)
        norm = lambda: nnx.RMSNorm(sizes.head_size, epsilon=sizes.epsilon, rngs=rngs) if sizes.qk_norm else None
        self.query_norm, self.key_norm = norm(), norm()
        self.keys, self.values = empty_cache(sizes, slots), empty_cache(sizes, slots)
        self.sizes = sizes

    def __call__(
        self, x: Float[Array, "batch length width"], shared: SharedInputs
    ) -> tuple[Float[Array, "batch length width"], AttentionHeads]:
        split = lambda y: by_rows(y.reshape(*y.shape[:-1], -1, self.sizes.head_size), tensor=-2)
        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))  # [batch, length, heads, head_size]
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        heads = AttentionHeads(rotate(q, shared.angles), rotate(k, shared.angles), v)
        mixed, heads = attend_cached(heads, (self.keys, self.values), shared, self.sizes)
        return by_rows(self.out(by_rows(mixed, tensor=-2).reshape(*x.shape[:-1], -1))), heads


def attend_cached(
    heads: AttentionHeads, cache: tuple[nnx.Variable | None, nnx.Variable | None], shared: SharedInputs, sizes: Sizes
) -> tuple[Float[Array, "batch length heads size"], AttentionHeads]:
    """Compute causal attention over new tokens and, if there is a key-value cache, cached tokens; update the cache.

    Args:
        heads: queries, keys and values of the new tokens.
        cache: variables with the cached keys and values, `[batch, slots, kv_heads, head_size]` each; None means no
            cache.
        shared: the inputs that all layers share.
        sizes: sizes and options of the block.

    Returns:
        The output, `[batch, length, heads, head_size]`, and `heads`, with the attention probabilities if
        `sizes.attentions` is true.
    """
    (keys, values), q, k, v = cache, heads.query, heads.key, heads.value
    if keys is not None and values is not None:
        k, v = (_write_cache(old, new, shared.positions) for old, new in ((keys, k), (values, v)))
    if sizes.attentions:
        mixed, weights = attend(q, k, v, shared)
        return mixed, replace(heads, probabilities=weights)
    options: dict[str, Any] = {"is_causal": shared.causal, "implementation": sizes.attention}
    return jax.nn.dot_product_attention(q, k, v, None, shared.mask, **options), heads


def empty_cache(sizes: Sizes, slots: tuple[int, ...] | None) -> nnx.Cache | None:
    """Return a variable of zeros for the cached keys (or values) of a block, `[*slots, kv_heads, head_size]`, or None.

    None means that there is no cache, because `slots` is None.
    """
    return nnx.Cache(jnp.zeros((*slots, sizes.kv_heads, sizes.head_size))) if slots else None


def _write_cache(
    cache: nnx.Variable, new: Float[Array, "batch length heads size"], positions: Integer[Array, "batch length"] | None
) -> Float[Array, "batch slots heads size"]:
    """Write the keys or values of new tokens into the cache, and return the whole cache in the dtype of `new`.

    Args:
        cache: variable with the cached keys or values, `[batch, slots, kv_heads, head_size]`.
        new: keys or values of the new tokens, `[batch, length, kv_heads, head_size]`.
        positions: cache slot of each new token, `[batch, length]`.
    """
    old = cache.get_value()
    cache.set_value(old.at[jnp.arange(old.shape[0])[:, None], positions].set(new.astype(old.dtype)))
    return cache.get_value().astype(new.dtype)


def attend(
    q: Float[Array, "batch queries heads size"],
    k: Float[Array, "batch keys kv_heads size"],
    v: Float[Array, "batch keys kv_heads size"],
    shared: SharedInputs,
) -> tuple[Float[Array, "batch queries heads size"], Float[Array, "batch heads queries keys"]]:
    """Compute grouped-query attention, and also return the attention probabilities.

    Args:
        q: queries, `[batch, queries, heads, head_size]`.
        k: keys, `[batch, keys, kv_heads, head_size]`.
        v: values, `[batch, keys, kv_heads, head_size]`.
        shared: the inputs that all layers share; only `mask` and `causal` are used.

    Returns:
        The output, `[batch, queries, heads, head_size]`, and the probabilities, `[batch, heads, queries, keys]`.
    """
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    allowed = jnp.tri(q.shape[1], k.shape[1], dtype=bool) if shared.causal else jnp.bool(True)
    allowed = allowed if shared.mask is None else shared.mask & allowed
    weights = jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", by_rows(weights, tensor=1), v), weights
