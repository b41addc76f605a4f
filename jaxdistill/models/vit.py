"""Vision transformer: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021 (arxiv.org/abs/2010.11929).

Pre-norm blocks, learned positions, the mean over patches instead of a class token (Beyer et al. 2022,
arxiv.org/abs/2205.01580).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill.models.layers import dropout, pixels, require_share
from jaxdistill.models.nnx import from_nnx
from jaxdistill.parallel.collectives import by_rows
from jaxdistill.registry import models
from jaxdistill.types import Array, Model, Outputs


class Attention(nnx.Module):
    """Multi-head self-attention that also returns its probabilities, `[batch, heads, queries, keys]`."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.query, self.key, self.value, self.out = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.heads = heads

    def __call__(self, x: Array) -> tuple[Array, Array]:
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
        q, k, v = (split(by_rows(project(x))) for project in (self.query, self.key, self.value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        weights = by_rows(jax.nn.softmax(scores).astype(x.dtype))
        mixed = by_rows(jnp.einsum("bhqk,bkhd->bqhd", weights, v))
        return by_rows(self.out(mixed.reshape(x.shape))), weights


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each on a normalised input and added to it."""

    def __init__(self, width: int, heads: int, mlp_width: int, rate: float, *, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.up, self.down = nnx.Linear(width, mlp_width, rngs=rngs), nnx.Linear(mlp_width, width, rngs=rngs)
        self.rate = rate

    def __call__(self, x: Array, train: bool, key: Array) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        mixed, weights = self.attention(self.attention_norm(x))
        x = by_rows(x + dropout(mixed, self.rate, train=train, key=first))
        y = by_rows(self.down(by_rows(jax.nn.gelu(self.up(self.mlp_norm(x))))))
        return by_rows(x + dropout(y, self.rate, train=train, key=second)), weights


class ViT(nnx.Module):
    """Hidden states: the patch embeddings, then every block, `[batch, patches, width]`."""

    def __init__(
        self, image, patch: int, width: int, depth: int, heads: int, rate: float, classes: int, *, rngs: nnx.Rngs
    ):
        height, length, channels = image
        patches = (height // patch) * (length // patch)
        self.embed = nnx.Conv(channels, width, (patch, patch), strides=patch, padding="VALID", rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (patches, width)))
        self.blocks = nnx.List([Block(width, heads, 4 * width, rate, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, batch, *, train: bool, key) -> Outputs:
        x = self.embed(pixels(batch["image"], self.head.kernel.dtype))
        x = by_rows(x.reshape(x.shape[0], -1, x.shape[-1]) + self.position)
        states, attentions = [x], []
        for number, block in enumerate(self.blocks):
            x, weights = block(x, train, jax.random.fold_in(key, number))
            states.append(x)
            attentions.append(weights)
        pooled = by_rows(jnp.mean(self.norm(x), axis=1))
        return Outputs(by_rows(self.head(pooled)), tuple(states), tuple(attentions), pooled)


@models.register
def vit(patch: int, width: int, depth: int, heads: int, classes: int, dropout: float = 0.0) -> Model:
    """A vision transformer over `image`.

    Args:
        patch: pixels along the side of a patch; it must divide the image's sides.
        width: of the residual stream; the perceptron inside a block is 4 times as wide.
        depth: blocks.
        heads: attention heads; they must divide the width.
        classes: how many logits.
        dropout: the share of each branch's output dropped in training.
    """
    if width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}")

    require_share("dropout", dropout)

    def make(rngs: nnx.Rngs, batch) -> ViT:
        image = batch["image"].shape[1:]
        if image[0] % patch or image[1] % patch:
            raise ValueError(f"a patch of {patch} does not divide an image of {image[0]} x {image[1]}")
        return ViT(image, patch, width, depth, heads, dropout, classes, rngs=rngs)

    return from_nnx(make)
