"""Build the towers of CLIP (2021, arxiv.org/abs/2103.00020) and SigLIP (2023, arxiv.org/abs/2303.15343); see `clip.py`.

One encoder (tower) embeds images and the other embeds texts, both into the same space. The logits are scaled dot
products of the image embeddings with the text embeddings.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, AttentionHeads, Outputs, RowsLike
from jaxdistill.models.layers import ACTIVATIONS, nudged
from jaxdistill.models.towers import pair_outputs
from jaxdistill.models.transformer import Block, Patches, Stack, layer_norm, run_blocks


class TextTower(nnx.Module):
    """The text encoder of CLIP or SigLIP: from token ids, `[batch, length]`, to embeddings, `[batch, projection]`.

    Args:
        stack: sizes and options of the transformer blocks.
        vocabulary: number of tokens in the vocabulary.
        positions: maximal number of tokens of a text.
        projection: width of the embeddings.
        end: for CLIP, the id of the end token: attention is causal, and a text is pooled at the first end token. If
            `end` is 2, as in the first configs of CLIP, a text is pooled at the token with the highest id instead. None
            for SigLIP: attention is not causal and includes padding, as in the authors' code, and a text is pooled at
            the last position. Each text must therefore be padded to `positions` tokens.
        rngs: random streams of the initial parameters.
    """

    def __init__(
        self, stack: Stack, vocabulary: int, positions: int, projection: int, end: int | None, *, rngs: nnx.Rngs
    ):
        self.token = nnx.Embed(vocabulary, stack.width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.position = nnx.Embed(positions, stack.width, embedding_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.blocks = nnx.List([Block(stack, rngs=rngs) for _ in range(stack.depth)])
        self.norm = layer_norm(stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.projection = nnx.Linear(stack.width, projection, use_bias=end is None, rngs=rngs)
        self.end = end

    def __call__(self, batch: RowsLike, train: bool, key: Array) -> Float[Array, "batch projection"]:
        ids = jnp.asarray(batch["input_ids"])
        length, positions = ids.shape[1], self.position.num_embeddings
        if length > positions:
            raise ValueError(f"texts of {length} tokens exceed the {positions} positions; truncate the texts")
        if self.end is None and length < positions:
            problem = f"SigLIP reads texts that are padded to {positions} tokens, and these have {length}"
            cure = f"set length={positions} in data.tokens, or teacher_length={positions} for a teacher's own tokens"
            raise ValueError(f"{problem}; {cure}")
        mask = None
        if self.end is not None:
            real = jnp.asarray(batch.get("attention_mask", jnp.ones_like(ids)))[:, None, None, :] > 0
            mask = real & jnp.tril(jnp.ones((length, length), bool))
        x = by_rows(self.token(ids) + self.position(jnp.arange(length)))  # [batch, length, width]
        for number, block in enumerate(self.blocks):
            x, _ = block(x, train, jax.random.fold_in(key, number), mask)
        x = by_rows(self.norm(x))
        pooled = jnp.take_along_axis(x, self._pooled_position(ids)[:, None, None], axis=1)[:, 0]  # [batch, width]
        return by_rows(self.projection(by_rows(pooled)))

    def _pooled_position(self, ids: Array) -> Array:
        """Return the position in each text whose state is pooled, `[batch]`."""
        if self.end is None:
            return jnp.full(ids.shape[0], ids.shape[1] - 1)
        return jnp.argmax(ids if self.end == 2 else ids == self.end, axis=1)


class AttentionPool(nnx.Module):
    """Attention pooling of image patches, `[batch, patches, width] -> [batch, width]`.

    A learned query (the probe) attends to all patches. A residual perceptron follows.
    """

    def __init__(self, stack: Stack, *, rngs: nnx.Rngs):
        self.probe = nnx.Param(jax.random.normal(rngs.params(), (1, 1, stack.width)) * stack.width**-0.5)
        self.project = nnx.Linear(stack.width, 3 * stack.width, rngs=rngs)  # queries, keys and values, concatenated
        self.out = nnx.Linear(stack.width, stack.width, rngs=rngs)
        self.norm = layer_norm(stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.up = nnx.Linear(stack.width, stack.ffn, rngs=rngs)
        self.down = nnx.Linear(stack.ffn, stack.width, rngs=rngs)
        self.heads, self.activation = stack.heads, ACTIVATIONS[stack.activation]

    def __call__(self, x: Float[Array, "batch patches width"]) -> Float[Array, "batch width"]:
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
        query, _, _ = jnp.split(self.project(self.probe[...]), 3, axis=-1)  # [1, 1, width]
        _, keys, values = jnp.split(by_rows(self.project(x)), 3, axis=-1)
        query = by_rows(jnp.broadcast_to(query, (x.shape[0], *query.shape[1:])))  # [batch, 1, width]
        mixed = by_rows(jax.nn.dot_product_attention(split(query), split(keys), split(values)))
        x = by_rows(self.out(mixed.reshape(query.shape)))
        y = by_rows(self.activation(self.up(by_rows(self.norm(x)))))
        return by_rows(x + self.down(y))[:, 0]


class ImageTower(nnx.Module):
    """The image encoder of CLIP or SigLIP: from images, `[batch, height, width, channels]`, to embeddings.

    The network returns the embeddings, `[batch, projection]`, the hidden states (outputs of the patch embedding and of
    every block), and the attention heads of all blocks.

    Args:
        stack: sizes and options of the transformer blocks.
        image: shape of an image, `(height, width, channels)`.
        patch: side of a patch in pixels.
        projection: width of the embeddings, which are projected from a class token (CLIP). None means that attention
            with a learned query pools the patches, and that the embeddings have the width of the blocks (SigLIP).
        rngs: random streams of the initial parameters.
    """

    def __init__(
        self, stack: Stack, image: tuple[int, int, int], patch: int, projection: int | None, *, rngs: nnx.Rngs
    ):
        norm = partial(layer_norm, stack.width, epsilon=stack.epsilon, rngs=rngs)
        class_token = projection is not None
        self.embed = Patches(image, patch, stack.width, int(class_token), bias=not class_token, flat=True, rngs=rngs)
        self.before, self.norm = norm() if class_token else None, norm()
        self.blocks = nnx.List([Block(stack, rngs=rngs) for _ in range(stack.depth)])
        self.pool = None if class_token else AttentionPool(stack, rngs=rngs)
        self.projection = nnx.Linear(stack.width, projection, use_bias=False, rngs=rngs) if projection else None

    def __call__(
        self, batch: RowsLike, train: bool, key: Array
    ) -> tuple[Array, tuple[Array, ...], tuple[AttentionHeads, ...]]:
        x = self.embed(batch["image"])
        x = nudged(x if self.before is None else by_rows(self.before(x)), batch, 0)
        x, states, attentions = run_blocks(self.blocks, x, batch, train, key)
        pooled = by_rows(self.norm(by_rows(x[:, 0]))) if self.pool is None else self.pool(by_rows(self.norm(x)))
        pooled = pooled if self.projection is None else by_rows(self.projection(pooled))
        return pooled, states, attentions


class TwoTowers(nnx.Module):
    """CLIP or SigLIP: an image encoder, a text encoder, and logits that compare each image with each text.

    The logits are `exp(scale) * image_embeddings @ text_embeddings.T + bias`, `[batch, texts]`, with embeddings of unit
    norm and all texts of the global batch. Texts that the field `mask` excludes have the logit `NO_CANDIDATE`. The
    hidden states and attentions are those of the image encoder.

    Args:
        images: the image encoder.
        texts: the text encoder.
        scale: initial value of the learned scale, a scalar or `[1]`.
        bias: initial value of the learned bias, `[1]`; None means no bias.
    """

    def __init__(self, images: ImageTower, texts: TextTower, scale: Array, bias: Array | None):
        self.images, self.texts = images, texts
        self.logit_scale = nnx.Param(scale)
        self.logit_bias = None if bias is None else nnx.Param(bias)

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        image_key, text_key = jax.random.split(key)
        pooled, states, attentions = self.images(batch, train, image_key)
        texts = self.texts(batch, train, text_key)
        bias = None if self.logit_bias is None else self.logit_bias[...]
        out = pair_outputs(pooled, texts, self.logit_scale[...], bias, batch["mask"])
        return replace(out, hidden_states=states, attentions=attentions)
