"""The network of decoder language models such as Llama (Touvron et al. 2023, arxiv.org/abs/2302.13971).

Pre-norm blocks with root mean square norms (Zhang and Sennrich 2019, arxiv.org/abs/1910.07467), rotary positions
(`rotary.py`), causal attention with grouped queries (Ainslie et al. 2023, arxiv.org/abs/2305.13245) and a gated
perceptron (Shazeer 2020, arxiv.org/abs/2002.05202). `lax.scan` runs the layers, or a Python loop. `decoder.py`
registers the model family; `gpt2.py` has the same network with blocks, norm and positions of its own.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, AttentionHeads, Factored, Outputs, RowsLike
from jaxdistill.models.layers import nudged
from jaxdistill.models.rotary import Llama3, frequencies, restart_positions, rotate

POLICIES = {  # which intermediate values a layer saves for its backward pass, in addition to its input
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
    mask: true where a query may attend to a key, `[batch or 1, 1, length or 1, keys]`; None: true everywhere
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
            arrays `[batch, tokens, kv_heads, head_size]`; None: keys and values are not cached.
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
    """Compute causal attention over new tokens, and over cached ones if there is a cache, which is written.

    Args:
        heads: queries, keys and values of the new tokens.
        cache: variables with the cached keys and values, `[batch, slots, kv_heads, head_size]` each; None: no cache.
        shared: the inputs that all layers share.
        sizes: sizes and options of the block.

    Returns:
        The output, and `heads`, with the probabilities if `sizes.attentions` asks for them.
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
    """Return a variable for the cached keys, or values, of a block; None if there is no cache."""
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


class Block(nnx.Module):
    """A pre-norm transformer block: attention, then a gated perceptron; the output of each is added to its input."""

    def __init__(self, sizes: Sizes, slots: tuple[int, ...] | None, *, rngs: nnx.Rngs):
        norm = lambda: nnx.RMSNorm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        linear = lambda inputs, outputs: nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(sizes, slots, rngs=rngs)
        self.gate, self.up = linear(sizes.width, sizes.ffn), linear(sizes.width, sizes.ffn)
        self.down = linear(sizes.ffn, sizes.width)

    def __call__(
        self, x: Float[Array, "batch length width"], shared: SharedInputs
    ) -> tuple[Float[Array, "batch length width"], AttentionHeads]:
        mixed, heads = self.attention(by_rows(self.attention_norm(x)), shared)
        x = by_rows(x + mixed)
        y = by_rows(self.mlp_norm(x))
        y = jax.nn.silu(by_rows(self.gate(y), tensor=-1)) * by_rows(self.up(y), tensor=-1)
        return by_rows(x + by_rows(self.down(y))), heads


MakeBlock = Callable[[Sizes, tuple[int, ...] | None, nnx.Rngs], nnx.Module]  # (sizes, shape of the cache, rngs)


class Decoder(nnx.Module):
    """The network of a decoder language model: token embedding, blocks, final norm and head.

    The hidden states are the token embeddings and the output of every block, `[batch, length, width]` each. The last
    hidden state is taken after the final norm, as in the library transformers. The logits are a `Factored` head:
    features and a kernel that are not yet multiplied. The embedding, `[batch, width]`, is the last hidden state at the
    last token that is not padding.

    Args:
        sizes: sizes and options of a block.
        vocabulary: number of tokens in the vocabulary.
        depth: number of blocks.
        tied: if true, the kernel of the head is the transposed embedding table.
        rope: maximal number of tokens; base of the rotary wavelengths; and scaling to longer contexts, or None.
        window: number of tokens that a token attends to, itself included; None: all before it.
        scan_layers: if true, `lax.scan` runs the blocks, with stacked parameters; otherwise a Python loop runs the
            blocks.
        remat: rematerialisation in the backward pass: "none" or a key of `POLICIES`.
        slots: shape of the key-value cache, `(batch, tokens)`; None: no cache.
        rngs: random streams of the initial parameters.
        make_block: function that makes a block.
        norm: class of the final norm.
        position_table: if true, a learned position embedding is added to the token embedding.
    """

    def __init__(
        self,
        sizes: Sizes,
        vocabulary: int,
        depth: int,
        tied: bool,
        rope: tuple[int, float, Llama3 | None],
        window: int | None,
        scan_layers: bool,
        remat: str,
        slots: tuple[int, ...] | None,
        *,
        rngs: nnx.Rngs,
        make_block: MakeBlock = lambda sizes, slots, rngs: Block(sizes, slots, rngs=rngs),
        norm: Callable[..., nnx.Module] = nnx.RMSNorm,
        position_table: bool = False,
    ):
        block = lambda key: make_block(sizes, slots, nnx.Rngs(key))
        keys = jax.random.split(rngs.params(), depth)
        self.embed = nnx.Embed(vocabulary, sizes.width, rngs=rngs)
        self.position = nnx.Embed(rope[0], sizes.width, rngs=rngs) if position_table else None
        self.blocks = nnx.vmap(block)(keys) if scan_layers else nnx.List([block(key) for key in keys])
        self.norm = norm(sizes.width, epsilon=sizes.epsilon, rngs=rngs)
        self.head = None if tied else nnx.Linear(sizes.width, vocabulary, use_bias=False, rngs=rngs)
        self.rope, self.window, self.remat, self.head_size = rope, window, remat, sizes.head_size

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs[Factored]:
        shared = self._shared(batch)
        x = by_rows(jnp.take(self.embed.embedding.get_value(), batch["input_ids"], axis=0))
        if self.position is not None:
            x = x + by_rows(jnp.take(self.position.embedding.get_value(), _positions(batch), axis=0))
        x = nudged(x, batch, 0)
        states, attentions = self._layers(x, shared, batch)
        features = nudged(by_rows(self.norm(states[-1])), batch, len(states))
        tied = self.head is None
        kernel = self.embed.embedding.get_value() if self.head is None else self.head.kernel.get_value()
        return Outputs(
            Factored(features, kernel, tied=tied),
            (x, *states[:-1], features),
            attentions,
            features[jnp.arange(x.shape[0]), _last(batch)],
        )

    def _shared(self, batch: RowsLike) -> SharedInputs:
        """Compute the inputs that all layers share: rotation angles, cache positions and the attention mask."""
        longest, theta, scaling = self.rope
        length = batch["slots" if "slots" in batch else "input_ids"].shape[1]
        if length > longest:
            raise ValueError(f"{length} tokens exceed the {longest} positions of this decoder; truncate them")
        positions = _positions(batch)
        angles = positions[..., None] * frequencies(self.head_size, theta, scaling)
        if "slots" in batch:
            # A slot beyond a query's position is empty, or holds padding that a later token overwrites: mask it
            written = batch["slots"][:, None, None, :] <= positions[:, None, :, None]
            if self.window is not None:
                written &= batch["slots"][:, None, None, :] > positions[:, None, :, None] - self.window
            return SharedInputs(angles, positions, written, causal=False)
        mask = None
        if "attention_mask" in batch:
            mask = batch["attention_mask"][:, None, None, :] > 0
        if "segment_ids" in batch:
            same_segment = batch["segment_ids"][:, None, :, None] == batch["segment_ids"][:, None, None, :]
            mask = same_segment if mask is None else mask & same_segment
        if self.window is not None and self.window < length:
            near = jnp.arange(length)[None, :] > jnp.arange(length)[:, None] - self.window  # [queries, keys]
            mask = near[None, None] if mask is None else mask & near
        return SharedInputs(angles, None, mask, causal=True)

    def _layers(
        self, x: Array, shared: SharedInputs, batch: RowsLike
    ) -> tuple[tuple[Array, ...], tuple[AttentionHeads, ...]]:
        """Run all layers; return the output, `[batch, length, width]`, and the attention heads of each layer.

        If the parameters of the layers are stacked along a leading axis, `lax.scan` runs the layers, and only one layer
        is compiled. Otherwise each layer is compiled.
        """

        def layer_of(graph: Any) -> Callable[[Array, Any], Any]:
            def layer(x: Array, layer_inputs: Any) -> Any:
                variables, nudge = layer_inputs
                block = nnx.merge(graph, variables)
                x, heads = block(x, shared)
                x = nudged(x, nudge, 0)
                return x, (x, heads, nnx.state(block, nnx.Cache))

            if self.remat == "none":
                return layer
            # Inside a scan XLA cannot undo the rematerialisation: the barriers that prevent this would only cost time
            return jax.checkpoint(layer, policy=POLICIES[self.remat], prevent_cse=isinstance(self.blocks, nnx.List))

        if not isinstance(self.blocks, nnx.List):  # one block whose parameters have a leading axis of layers
            graph, variables = nnx.split(self.blocks)
            depth = jax.tree.leaves(variables)[0].shape[0]
            nudges = jax.tree.map(lambda *each: jnp.stack(each), *(_nudge(batch, n, depth) for n in range(depth)))
            last, (states, attentions, caches) = jax.lax.scan(layer_of(graph), x, (variables, nudges))
            nnx.update(self.blocks, caches)
            unstack = lambda tree: tuple(jax.tree.map(lambda leaf, n=n: leaf[n], tree) for n in range(depth))
            # The last state comes from the carry: if no loss reads the other states, `jit` removes their stack
            return (*unstack(states)[:-1], last), unstack(attentions)
        states, attentions = [], []
        for number, block in enumerate(self.blocks):
            graph, variables = nnx.split(block)
            x, (_, heads, cache) = layer_of(graph)(x, (variables, _nudge(batch, number, len(self.blocks))))
            nnx.update(block, cache)
            states.append(x)
            attentions.append(heads)
        return tuple(states), tuple(attentions)


def _nudge(batch: RowsLike, number: int, depth: int) -> dict[str, Array]:
    """Return the tensor that a block adds to its output, `{"nudge/0": array}`, or `{}` (see `layers.nudged`).

    The tensor is zero for the last block, because its hidden state is taken, and nudged, after the final norm.

    Args:
        batch: the batch; the field `nudge/<number + 1>` belongs to the output of block `number`.
        number: index of the block.
        depth: number of blocks.
    """
    nudge = batch.get(f"nudge/{number + 1}")
    return {} if nudge is None else {"nudge/0": nudge if number + 1 < depth else jnp.zeros_like(nudge)}


def _positions(batch: RowsLike) -> Array:
    """Return the position of every token in its sequence or document, `[batch or 1, length]`."""
    if "positions" in batch:
        return jnp.asarray(batch["positions"])
    if "segment_ids" in batch:
        return restart_positions(jnp.asarray(batch["segment_ids"]))
    return jnp.arange(batch["input_ids"].shape[1])[None]


def _last(batch: RowsLike) -> Array:
    """Return the index of the last token that is not padding in each sequence, `[batch]`."""
    real = batch.get("attention_mask", jnp.ones_like(batch["input_ids"]))
    return jnp.max(jnp.where(real > 0, jnp.arange(real.shape[1]), 0), axis=1)
