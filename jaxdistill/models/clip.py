"""Two towers, one for images and one for texts, whose embeddings meet.

CLIP: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021
(arxiv.org/abs/2103.00020). Texts are read causally and pooled at the token that ends them, images at a class token.
SigLIP: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023 (arxiv.org/abs/2303.15343). Texts are read both
ways and pooled at the last position, images by attention from a learned probe; logits have a bias.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.models.transformer import Block, Stack, layer_norm
from jaxdistill.parallel.collectives import by_rows
from jaxdistill.types import Array

NO_CANDIDATE = -1e9  # of a text that does not count; finite, so that its probability of 0 times it is 0


class Texts(nnx.Module):
    """A text's vector, `[batch, projection]`; with `end`, reading is causal and the first such token is pooled.

    The vocabulary's highest token is the end where a config says 2, as CLIP's first ones do.
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

    def __call__(self, batch: Mapping[str, Array], train: bool, key: Array) -> Array:
        ids = batch["input_ids"]
        length, positions = ids.shape[1], self.position.num_embeddings
        if length > positions:
            raise ValueError(f"texts of {length} tokens, and positions for {positions}; cut the texts")
        mask = batch.get("attention_mask", jnp.ones_like(ids))[:, None, None, :] > 0
        if self.end is not None:
            mask = mask & jnp.tril(jnp.ones((length, length), bool))
        x = by_rows(self.token(ids) + self.position(jnp.arange(length)))
        for number, block in enumerate(self.blocks):
            x, _ = block(x, train, jax.random.fold_in(key, number), mask)
        x = by_rows(self.norm(x))
        last = jnp.take_along_axis(x, self._last(ids)[:, None, None], axis=1)[:, 0]
        return by_rows(self.projection(by_rows(last)))

    def _last(self, ids: Array) -> Array:
        if self.end is None:
            return jnp.full(ids.shape[0], ids.shape[1] - 1)
        return jnp.argmax(ids if self.end == 2 else ids == self.end, axis=1)


class Probe(nnx.Module):
    """Pools `[batch, patches, width]` by attention from a learned query, then a perceptron: `[batch, width]`."""

    def __init__(self, stack: Stack, *, rngs: nnx.Rngs):
        self.probe = nnx.Param(jax.random.normal(rngs.params(), (1, 1, stack.width)) * stack.width**-0.5)
        self.project = nnx.Linear(stack.width, 3 * stack.width, rngs=rngs)  # queries, keys and values side by side
        self.out = nnx.Linear(stack.width, stack.width, rngs=rngs)
        self.norm = layer_norm(stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.up = nnx.Linear(stack.width, stack.ffn, rngs=rngs)
        self.down = nnx.Linear(stack.ffn, stack.width, rngs=rngs)
        self.stack = stack

    def __call__(self, x: Array) -> Array:
        split = lambda y: y.reshape(*y.shape[:-1], self.stack.heads, -1)
        query, _, _ = jnp.split(self.project(self.probe[...]), 3, axis=-1)
        _, keys, values = jnp.split(by_rows(self.project(x)), 3, axis=-1)
        query = by_rows(jnp.broadcast_to(query, (x.shape[0], *query.shape[1:])))
        mixed = by_rows(jax.nn.dot_product_attention(split(query), split(keys), split(values)))
        x = by_rows(self.out(mixed.reshape(query.shape)))
        y = by_rows(ACTIVATIONS[self.stack.activation](self.up(by_rows(self.norm(x)))))
        return by_rows(x + self.down(y))[:, 0]
