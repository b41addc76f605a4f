"""ResNet for small images (He et al. 2016, Deep Residual Learning, arxiv.org/abs/1512.03385, section 4.2).

A 3x3 stem without pooling, then stages of basic blocks. Each stage after the first halves height and width.
`widths=(16, 32, 64), blocks=3` is the paper's ResNet-20. `widths=(64, 128, 256)` is 4 times as wide, like the stages of
the "x4" variants (ResNet-8x4, ResNet-32x4) in the CIFAR-100 tables of the distillation literature.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Shaped

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, Outputs, RowsLike
from jaxdistill.models.layers import BatchNorm, nudged, pixels
from jaxdistill.models.nnx import from_nnx


def _conv(inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        use_bias=False,
        kernel_init=nnx.initializers.he_normal(),
        rngs=rngs,
    )


class Block(nnx.Module):
    """A basic residual block: two 3x3 convolutions and a shortcut, `[batch, height, width, channels]`.

    The shortcut is a 1x1 convolution if the number of channels or the image size changes, else the identity. `inner` is
    the number of channels between the two convolutions.
    """

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.first, self.first_norm = _conv(inputs, inner, 3, stride, rngs), BatchNorm(inner)
        self.second, self.second_norm = _conv(inner, outputs, 3, 1, rngs), BatchNorm(outputs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = _conv(inputs, outputs, 1, stride, rngs) if changes else None
        self.shortcut_norm = BatchNorm(outputs) if changes else None

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Shaped[Array, " batch"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        y = by_rows(jax.nn.relu(self.first_norm(self.first(x), mask, train)))
        y = by_rows(self.second_norm(self.second(y), mask, train))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = by_rows(self.shortcut_norm(self.shortcut(x), mask, train))
        # In float32: XLA on CPU (jax 0.12.0.1) returned 1e36 for a bfloat16 sum of convolutions followed by a mean
        total = x.astype(jnp.float32) + y.astype(jnp.float32)
        return by_rows(jax.nn.relu(total).astype(x.dtype))


class ResNet(nnx.Module):
    """A ResNet; the hidden states are the outputs of stem and blocks, `[batch, height, width, channels]` each.

    `blocks` is the number of blocks in each stage (blocks with one number of channels), and `inner` the number of
    channels between the convolutions of each block. The embedding is the last hidden state averaged over height and
    width.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        blocks: int,
        classes: int,
        inner: tuple[int, ...],
        *,
        rngs: nnx.Rngs,
    ):
        self.stem, self.stem_norm = _conv(channels, widths[0], 3, 1, rngs), BatchNorm(widths[0])
        layers: list[Block] = []
        width = widths[0]
        for stage, outputs in enumerate(widths):
            for number in range(blocks):
                stride = 2 if stage and not number else 1
                layers.append(Block(width, inner[len(layers)], outputs, stride, rngs=rngs))
                width = outputs
        self.blocks = nnx.List(layers)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        mask = jnp.asarray(batch["mask"])
        x = pixels(batch["image"], self.head.kernel.dtype)
        x = by_rows(jax.nn.relu(self.stem_norm(self.stem(x), mask, train)))
        x = nudged(x, batch, 0)
        states = [x]
        for number, block in enumerate(self.blocks, 1):
            x = nudged(block(x, mask, train), batch, number)
            states.append(x)
        x = by_rows(jnp.mean(x, axis=(1, 2)))  # [batch, channels]
        return Outputs(by_rows(self.head(x)), tuple(states), embedding=x)


@models.register
def resnet(widths: tuple[int, ...], blocks: int, classes: int, inner: tuple[int, ...] = ()) -> Model:
    """Build a residual network for small images, which reads the field `image`, `[batch, height, width, channels]`.

    The running statistics of the batch normalisation are state, not params.

    Args:
        widths: number of channels in each stage of blocks; one entry or more.
        blocks: number of basic blocks in each stage.
        classes: number of classes.
        inner: number of channels between the two convolutions of each block, in order; () means as many as the block's
            output has.

    Raises:
        ValueError: `widths` is empty, a size is not positive, or `inner` does not have one entry for each block.
    """
    if not widths or min(widths) < 1 or blocks < 1:
        raise ValueError(f"widths and blocks must be positive; got widths={widths}, blocks={blocks}")
    channels = inner or tuple(width for width in widths for _ in range(blocks))
    if len(channels) != len(widths) * blocks or min(channels) < 1:
        raise ValueError(f"inner={inner} must have {len(widths) * blocks} positive entries, one for each block")
    return from_nnx(lambda rngs, batch: ResNet(batch["image"].shape[-1], widths, blocks, classes, channels, rngs=rngs))
