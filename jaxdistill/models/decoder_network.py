"""The network of decoder language models such as Llama (Touvron et al. 2023, arxiv.org/abs/2302.13971).

Pre-norm blocks with root mean square norms (Zhang and Sennrich 2019, arxiv.org/abs/1910.07467), rotary positions
(`rotary.py`), causal attention with grouped queries (`decoder_attention.py`) and a gated perceptron (Shazeer 2020,
arxiv.org/abs/2002.05202). `lax.scan` runs the layers, or a Python loop. `decoder.py` registers the model family;
`gpt2.py` has the same network with blocks, norm and positions of its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, AttentionHeads, Factored, Outputs, RowsLike
from jaxdistill.models.decoder_attention import Attention, SharedInputs, Sizes
from jaxdistill.models.layers import nudged
from jaxdistill.models.rotary import Llama3, frequencies, restart_positions

POLICIES = {  # which intermediate values a layer saves for its backward pass, in addition to its input
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
        window: number of most recent tokens, itself included, that a token attends to (sliding window); None means all
            tokens up to itself.
        scan_layers: if true, `lax.scan` runs the blocks, with stacked parameters; otherwise a Python loop runs the
            blocks.
        remat: rematerialisation in the backward pass: "none" or a key of `POLICIES`.
        slots: shape of the key-value cache, `(batch, tokens)`; None means no cache.
        rngs: random streams of the initial parameters.
        make_block: function `(sizes, slots, rngs) -> module` that makes a block.
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
    """Return the nudge of a block as a dict, `{"nudge/0": array}`; it is empty if the batch has no such nudge.

    A nudge is an array of zeros that is added to a hidden state, to differentiate with respect to that state (see
    `layers.nudged`). The last block gets new zeros, because its hidden state is taken, and nudged, after the final
    norm.

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
