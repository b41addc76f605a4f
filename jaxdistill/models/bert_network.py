"""The network of BERT (Devlin et al. 2019, arxiv.org/abs/1810.04805) and its variants; see `bert.py`.

Post-norm transformer blocks, learned position embeddings, and a head that classifies texts or embeds sentences.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Integer

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, AttentionHeads, Outputs, RowsLike
from jaxdistill.models.layers import ACTIVATIONS, lookup, nudged
from jaxdistill.models.layers import dropout as drop
from jaxdistill.models.transformer import Stack, layer_norm

Tokens = Float[Array, "batch length width"]  # hidden states of tokens
Real = Bool[Array, "batch length"]  # false for padding
Pooled = tuple[Float[Array, "batch classes"], Float[Array, "batch width"]]  # logits and embedding
_normal = nnx.initializers.normal(0.02)
_linear = partial(nnx.Linear, kernel_init=_normal)


class Rows(nnx.Variable):
    """An untrained variable with the row of the embedding table that each token id uses, `[tokens]`."""


class Embed(nnx.Module):
    """The embedding layer: the normalised sum of token, position and token type embeddings, then dropout.

    If `pad` is set (RoBERTa), real tokens are numbered from `pad + 1`, and padding tokens have the position `pad`. If
    `tokens` is set, there are more token ids than rows of the embedding table, and `rows` has the row of each id. If
    `narrow` is set (ELECTRA), the embeddings have this width, and are projected to the width of the blocks.
    """

    def __init__(
        self,
        stack: Stack,
        vocabulary: int,
        positions: int,
        token_types: int,
        pad: int | None,
        tokens: int | None,
        narrow: int | None,
        *,
        rngs: nnx.Rngs,
    ):
        width = narrow or stack.width
        table = partial(nnx.Embed, features=width, embedding_init=_normal, rngs=rngs)
        self.token, self.position = table(vocabulary), table(positions)
        self.type = table(token_types) if token_types else None
        self.norm = layer_norm(width, epsilon=stack.epsilon, rngs=rngs)
        self.project = _linear(width, stack.width, rngs=rngs) if narrow else None
        self.rows = Rows(jnp.minimum(jnp.arange(tokens), vocabulary - 1)) if tokens else None
        self.limit = positions if pad is None else positions - pad - 1
        self.pad, self.rate = pad, stack.dropout

    def __call__(self, batch: RowsLike, train: bool, key: Array) -> Tokens:
        ids = jnp.asarray(batch["input_ids"])
        if ids.shape[1] > self.limit:
            raise ValueError(f"texts of {ids.shape[1]} tokens exceed the {self.limit} positions; truncate the texts")
        rows = ids if self.rows is None else jnp.take(self.rows.get_value(), ids, axis=0)
        x = by_rows(lookup(self.token, rows)) + by_rows(lookup(self.position, self._positions(ids)))
        if self.type is not None:
            types = jnp.asarray(batch.get("token_type_ids", jnp.zeros_like(ids)))
            x = x + by_rows(lookup(self.type, types))
        x = by_rows(drop(self.norm(by_rows(x)), self.rate, train=train, key=key))
        return x if self.project is None else by_rows(self.project(x))

    def _positions(self, ids: Integer[Array, "batch length"]) -> Integer[Array, "batch length"]:
        """Return the row of the position table that every token uses, `[batch, length]`."""
        if self.pad is None:
            return jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        real = (ids != self.pad).astype(ids.dtype)
        return jnp.cumsum(real, axis=1) * real + self.pad


def attention_weights(
    q: Float[Array, "batch queries heads size"],
    k: Float[Array, "batch keys heads size"],
    mask: Bool[Array, "batch 1 #queries keys"],
) -> Float[Array, "batch heads queries keys"]:
    """Compute the attention probabilities, `[batch, heads, queries, keys]`; they are 0 where `mask` is false.

    A query whose mask is false for all keys has equal probabilities for all keys.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)  # -inf would give NaN for an empty text
    return by_rows(jax.nn.softmax(scores).astype(q.dtype), tensor=1)


class Attention(nnx.Module):
    """Multi-head self-attention, `[batch, length, width] -> [batch, length, width]`.

    `real` `[batch, length]` is false for padding. The attention probabilities, before dropout, are returned if
    `return_probabilities` is true. They take memory only then, or if dropout applies to them (`rate` above 0).
    """

    def __init__(self, stack: Stack, rate: float, *, rngs: nnx.Rngs):
        inner = stack.attention_width
        self.query, self.key, self.value = (_linear(stack.width, inner, rngs=rngs) for _ in range(3))
        self.out = _linear(inner, stack.width, rngs=rngs)
        self.heads, self.rate, self.return_probabilities = stack.heads, rate, stack.attentions

    def __call__(self, x: Tokens, real: Real, train: bool, key: Array) -> tuple[Tokens, AttentionHeads]:
        split = lambda y: by_rows(y.reshape(*y.shape[:-1], self.heads, -1), tensor=-2)
        q, k, v = (split(project(x)) for project in (self.query, self.key, self.value))  # [batch, length, heads, d]
        mask, weights = real[:, None, None, :], None
        if self.return_probabilities or (train and self.rate > 0):
            weights = attention_weights(q, k, mask)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", drop(weights, self.rate, train=train, key=key), v)
        else:
            mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
        mixed = self.out(by_rows(mixed, tensor=-2).reshape(*x.shape[:-1], -1))
        return by_rows(mixed), AttentionHeads(q, k, v, weights if self.return_probabilities else None)


class Block(nnx.Module):
    """A post-norm transformer block: attention, then a perceptron, each with a residual addition and then a norm."""

    def __init__(self, stack: Stack, attention_rate: float, *, rngs: nnx.Rngs):
        norm = partial(layer_norm, stack.width, epsilon=stack.epsilon, rngs=rngs)
        self.attention = Attention(stack, attention_rate, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.up, self.down = _linear(stack.width, stack.ffn, rngs=rngs), _linear(stack.ffn, stack.width, rngs=rngs)
        self.activation, self.rate = ACTIVATIONS[stack.activation], stack.dropout

    def __call__(self, x: Tokens, real: Real, train: bool, key: Array) -> tuple[Tokens, AttentionHeads]:
        first, second, third = jax.random.split(key, 3)
        mixed, heads = self.attention(x, real, train, first)
        x = by_rows(self.attention_norm(x + drop(mixed, self.rate, train=train, key=second)))
        y = by_rows(self.down(by_rows(self.activation(self.up(x)), tensor=-1)))
        return by_rows(self.mlp_norm(x + drop(y, self.rate, train=train, key=third))), heads


class Head(nnx.Module):
    """The classification head: a hidden layer on the first token, then dropout and the logits layer.

    Returns the logits, `[batch, classes]`, and the output of the hidden layer, `[batch, width]`, which is the
    embedding. If `drop_input` is true, dropout is also applied before the hidden layer.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        activation: Callable[[Array], Array],
        rate: float,
        drop_input: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.dense, self.out = _linear(width, width, rngs=rngs), _linear(width, classes, rngs=rngs)
        self.activation, self.rate, self.drop_input = activation, rate, drop_input

    def __call__(self, x: Tokens, real: Real, train: bool, key: Array) -> Pooled:
        first, second = jax.random.split(key)
        x = by_rows(x[:, 0])  # [batch, width]
        x = drop(x, self.rate, train=train, key=first) if self.drop_input else x
        pooled = by_rows(self.activation(self.dense(x)))
        return by_rows(self.out(drop(pooled, self.rate, train=train, key=second))), pooled


class Pool(nnx.Module):
    """The head of a sentence embedding model: the mean over the tokens, or the first token ("cls"), at unit norm.

    This vector, `[batch, width]`, is returned twice: as the logits and as the embedding.
    """

    def __init__(self, pool: str):
        self.pool = pool

    def __call__(self, x: Tokens, real: Real, train: bool, key: Array) -> Pooled:
        pooled = real if self.pool == "mean" else real & (jnp.arange(real.shape[1]) == 0)
        total = jnp.sum(jnp.where(pooled[:, :, None], x.astype(jnp.float32), 0), axis=1)  # [batch, width]
        # A sum and a mean have the same direction. The lower bound keeps the gradient finite for an empty text
        square = jnp.sum(total**2, axis=-1, keepdims=True)
        embedding = by_rows((total * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype))
        return embedding, embedding


class Bert(nnx.Module):
    """A BERT encoder; hidden states are the outputs of embedding layer and blocks, `[batch, length, width]` each."""

    def __init__(self, embed: Embed, blocks: list[Block], head: Head | Pool):
        self.embed, self.blocks, self.head = embed, nnx.List(blocks), head

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        real = jnp.asarray(batch.get("attention_mask", jnp.ones_like(batch["input_ids"]))) > 0
        embed_key, block_key, head_key = jax.random.split(key, 3)
        x = nudged(self.embed(batch, train, embed_key), batch, 0)
        states, attentions = [x], []
        for number, block in enumerate(self.blocks):
            x, heads = block(x, real, train, jax.random.fold_in(block_key, number))
            x = nudged(x, batch, number + 1)
            states.append(x)
            attentions.append(heads)
        logits, embedding = self.head(x, real, train, head_key)
        return Outputs(logits, tuple(states), tuple(attentions), embedding)
