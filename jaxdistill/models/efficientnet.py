"""EfficientNet-Lite (2020), the mobile variant of EfficientNet (Tan and Le 2019, arxiv.org/abs/1905.11946).

Lite has no squeeze-and-excitation, and ReLU6 in place of swish (github.com/tensorflow/tpu/tree/master/models/official/
efficientnet/lite). Checkpoints use the weight names of the PyTorch port by Luke Melas-Kyriazi. Weights that were
trained in TensorFlow need the "SAME" padding of TensorFlow: if the padding is an odd number of pixels, the extra pixel
is added at the bottom and at the right.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Shaped

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.interfaces import Model
from jaxdistill.core.registry import models
from jaxdistill.core.types import Array, Outputs, RowsLike
from jaxdistill.models.hub import family
from jaxdistill.models.hub.family import Family, Rule, batch_norm_rules
from jaxdistill.models.layers import BatchNorm, Depthwise, dropout, nudged, pixels, require_dropout_rate
from jaxdistill.models.nnx import from_nnx

Stages = tuple[tuple[int, int, int, int, int], ...]  # (width, blocks, kernel size, stride, expansion) of each stage
LITE0: Stages = (
    (16, 1, 3, 1, 1),
    (24, 2, 3, 2, 6),
    (40, 2, 5, 2, 6),
    (80, 3, 3, 2, 6),
    (112, 3, 5, 1, 6),
    (192, 4, 5, 2, 6),
    (320, 1, 3, 1, 6),
)


def _conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, stride: int = 1) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        use_bias=False,
        kernel_init=nnx.initializers.he_normal(),
        rngs=rngs,
    )


def _norm(width: int) -> BatchNorm:
    return BatchNorm(width, momentum=0.99, epsilon=1e-3)  # values of the published code


class Block(nnx.Module):
    """An inverted bottleneck (Sandler et al. 2018), `[batch, height, width, channels]`.

    A 1x1 convolution multiplies the number of channels by `expansion`. A depthwise convolution with the kernel size
    `kernel` filters each channel. A linear 1x1 convolution reduces the channels to `outputs`. The input is added to the
    result if both have the same shape.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, *, rngs: nnx.Rngs):
        hidden = inputs * expansion
        self.up = _conv(inputs, hidden, 1, rngs) if expansion > 1 else None
        self.up_norm = _norm(hidden) if expansion > 1 else None
        self.depthwise, self.depthwise_norm = Depthwise(hidden, kernel, stride, rngs=rngs), _norm(hidden)
        self.down, self.down_norm = _conv(hidden, outputs, 1, rngs), _norm(outputs)
        self.has_shortcut = stride == 1 and inputs == outputs

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Shaped[Array, " batch"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        y = x
        if self.up is not None and self.up_norm is not None:
            y = by_rows(jax.nn.relu6(self.up_norm(by_rows(self.up(y)), mask, train)))
        y = by_rows(jax.nn.relu6(self.depthwise_norm(by_rows(self.depthwise(y)), mask, train)))
        y = by_rows(self.down_norm(by_rows(self.down(y)), mask, train))
        if not self.has_shortcut:
            return y
        # in float32, as in resnet.py: XLA on CPU miscompiled this sum in bfloat16
        return by_rows((x.astype(jnp.float32) + y.astype(jnp.float32)).astype(x.dtype))


class EfficientNet(nnx.Module):
    """An EfficientNet-Lite. The hidden states are the outputs of stem and blocks, `[batch, height, width, channels]`.

    The embedding is the output of the last convolution, averaged over height and width, `[batch, top]`. Dropout with
    the rate `rate` is applied between the embedding and the logits.
    """

    def __init__(
        self, channels: int, stem: int, stages: Stages, top: int, rate: float, classes: int, *, rngs: nnx.Rngs
    ):
        self.stem, self.stem_norm = _conv(channels, stem, 3, rngs, stride=2), _norm(stem)
        layers, width = [], stem
        for outputs, blocks, kernel, stride, expansion in stages:
            for number in range(blocks):
                layers.append(Block(width, outputs, kernel, 1 if number else stride, expansion, rngs=rngs))
                width = outputs
        self.blocks = nnx.List(layers)
        self.top, self.top_norm = _conv(width, top, 1, rngs), _norm(top)
        self.head = nnx.Linear(top, classes, rngs=rngs)
        self.rate = rate

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        mask = jnp.asarray(batch["mask"])
        x = pixels(batch["image"], self.head.kernel.dtype)
        x = by_rows(jax.nn.relu6(self.stem_norm(by_rows(self.stem(x)), mask, train)))
        x = nudged(x, batch, 0)
        states = [x]
        for number, block in enumerate(self.blocks, 1):
            x = nudged(block(x, mask, train), batch, number)
            states.append(x)
        x = by_rows(jax.nn.relu6(self.top_norm(by_rows(self.top(x)), mask, train)))
        pooled = by_rows(jnp.mean(x, axis=(1, 2)))  # [batch, top]
        dropped = dropout(pooled, self.rate, train=train, key=key)
        return Outputs(by_rows(self.head(dropped)), tuple(states), embedding=pooled)


@models.register
def efficientnet_lite(
    classes: int = 1000,
    stem: int = 32,
    stages: Stages = LITE0,
    top: int = 1280,
    dropout: float = 0.0,
    channels: int | None = None,
) -> Model:
    """Build EfficientNet-Lite, which reads the batch field `image`. The defaults are Lite0 with 4.65 M parameters.

    The running statistics of the batch normalisation are state, not params.

    Args:
        classes: number of classes.
        stem: number of output channels of the first convolution.
        stages: (output channels, number of blocks, kernel size, stride, expansion) of each stage; expansion is the
            factor by which a block increases the number of channels inside.
        top: number of output channels of the last convolution, whose output is pooled.
        dropout: dropout rate of the pooled features; 0.2 in the published training of Lite0.
        channels: number of channels of an image; None means as many as the batch's images have.

    Raises:
        ValueError: there is no stage, a size is not positive, the dropout rate is out of range, or the images have
            another number of channels than `channels`.
    """
    sizes = (stem, top, *(size for stage in stages for size in stage))
    if not stages or min(sizes) < 1:
        raise ValueError(f"give at least one stage, and positive sizes; got {stem=}, {stages=}, {top=}")
    require_dropout_rate("dropout", dropout)

    def make(rngs: nnx.Rngs, batch: RowsLike) -> EfficientNet:
        image_channels = batch["image"].shape[-1]
        if channels not in (None, image_channels):
            raise ValueError(f"the images have {image_channels} channels, but the model has channels={channels}")
        return EfficientNet(image_channels, stem, stages, top, dropout, classes, rngs=rngs)

    return from_nnx(make)


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "classes": family.num_classes(config, default=1000),
        "stem": config.get("stem_size", 32),
        "stages": tuple(tuple(stage) for stage in config.get("stages", LITE0)),
        "top": config.get("top_size", 1280),
        "dropout": config.get("dropout_rate", 0.0),
        "channels": config.get("num_channels", 3),
    }


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(efficientnet_lite, arguments)
    return {
        "model_type": "efficientnet_lite",  # our own type: transformers has no EfficientNet-Lite
        "architectures": ["EfficientNetLite"],
        "num_labels": settings["classes"],
        "stem_size": settings["stem"],
        "stages": settings["stages"],
        "top_size": settings["top"],
        "dropout_rate": settings["dropout"],
        "num_channels": settings["channels"],
    }


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    block = r"blocks/(\d+)/"
    return (
        Rule("stem/kernel", "_conv_stem.weight", "conv"),
        *batch_norm_rules("stem_norm", "_bn0"),
        Rule(f"{block}up/kernel", "_blocks.{0}._expand_conv.weight", "conv"),
        *batch_norm_rules(f"{block}up_norm", "_blocks.{0}._bn0"),
        Rule(f"{block}depthwise/kernel", "_blocks.{0}._depthwise_conv.weight", "conv"),
        *batch_norm_rules(f"{block}depthwise_norm", "_blocks.{0}._bn1"),
        Rule(f"{block}down/kernel", "_blocks.{0}._project_conv.weight", "conv"),
        *batch_norm_rules(f"{block}down_norm", "_blocks.{0}._bn2"),
        Rule("top/kernel", "_conv_head.weight", "conv"),
        *batch_norm_rules("top_norm", "_bn1"),
        Rule("head/kernel", "_fc.weight", "linear"),
        Rule("head/bias", "_fc.bias"),
    )


family.register(
    Family(
        efficientnet_lite,
        ("efficientnet_lite0", "efficientnet_lite"),
        _arguments,
        _config,
        _rules,
        fresh="head/.*",
        ignored=r".*num_batches_tracked",
    )
)
