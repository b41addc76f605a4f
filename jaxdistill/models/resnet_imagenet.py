"""ResNet for ImageNet-size images (He et al. 2016, Deep Residual Learning, arxiv.org/abs/1512.03385, section 4.1).

A 7x7 stem with max pooling, then stages of basic or bottleneck blocks. Padding is symmetric, as in PyTorch, and there
is one hidden state per stage, as in transformers. `resnet.py` is the network for small images, which differs almost
everywhere: it has another stem, no bottlenecks, "SAME" padding, and one hidden state per block.
"""

from collections.abc import Mapping
from typing import Any, Literal

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
from jaxdistill.models.layers import BatchNorm, nudged, pixels
from jaxdistill.models.nnx import from_nnx

SYMMETRIC = ((1, 1), (1, 1))  # padding of height and width, (before, after) each


class ConvNorm(nnx.Module):
    """A `size` x `size` convolution without bias, then batch normalisation, `[batch, height, width, channels]`."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=[(size // 2, size // 2)] * 2,
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Shaped[Array, " batch"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        return by_rows(self.norm(by_rows(self.conv(x)), mask, train))


class Block(nnx.Module):
    """A residual block: convolutions with ReLU between them, and a shortcut, `[batch, height, width, channels]`.

    `sizes` has (channels, kernel size, stride) of each convolution, and `stride` is the product of all strides. The
    shortcut is a 1x1 convolution if the number of channels or the image size changes, else the identity.
    """

    def __init__(self, inputs: int, sizes: tuple[tuple[int, int, int], ...], stride: int, *, rngs: nnx.Rngs):
        layers, width = [], inputs
        for outputs, size, step in sizes:
            layers.append(ConvNorm(width, outputs, size, step, rngs=rngs))
            width = outputs
        self.layers = nnx.List(layers)
        changes = stride != 1 or inputs != width
        self.shortcut = ConvNorm(inputs, width, 1, stride, rngs=rngs) if changes else None

    def __call__(
        self, x: Float[Array, "batch height width channels"], mask: Shaped[Array, " batch"], train: bool
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        y = x
        for number, layer in enumerate(self.layers):
            y = layer(by_rows(jax.nn.relu(y)) if number else y, mask, train)
        if self.shortcut is not None:
            x = self.shortcut(x, mask, train)
        # In float32, as in resnet.py: XLA on CPU miscompiled this sum in bfloat16
        return by_rows(jax.nn.relu(x.astype(jnp.float32) + y.astype(jnp.float32)).astype(x.dtype))


class ResNet(nnx.Module):
    """A ResNet; the hidden states are the outputs of stem and stages, `[batch, height, width, channels]` each.

    The stem includes the max pooling. The embedding, `[batch, width]`, is the output of the last stage, averaged over
    height and width.
    """

    def __init__(
        self, channels: int, stem: int, stages: list[list[Block]], classes: int, width: int, *, rngs: nnx.Rngs
    ):
        self.stem = ConvNorm(channels, stem, 7, 2, rngs=rngs)
        self.stages = nnx.List([nnx.List(blocks) for blocks in stages])
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, batch: RowsLike, *, train: bool, key: Array) -> Outputs:
        mask = jnp.asarray(batch["mask"])
        x = pixels(batch["image"], self.head.kernel.dtype)
        x = by_rows(nnx.max_pool(by_rows(jax.nn.relu(self.stem(x, mask, train))), (3, 3), (2, 2), SYMMETRIC))
        x = nudged(x, batch, 0)
        states = [x]
        for number, blocks in enumerate(self.stages, 1):
            for block in blocks:
                x = block(x, mask, train)
            x = nudged(x, batch, number)
            states.append(x)
        pooled = by_rows(jnp.mean(x, axis=(1, 2)))  # [batch, channels]
        return Outputs(by_rows(self.head(pooled)), tuple(states), embedding=pooled)


@models.register
def resnet_imagenet(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    classes: int,
    block: Literal["basic", "bottleneck"] = "bottleneck",
    stem: int = 64,
    channels: int = 3,
    early_stride: bool = False,
    first_stride: int = 1,
) -> Model:
    """Build a residual network for ImageNet-size images, which reads `image`, `[batch, height, width, channels]`.

    The running statistics of the batch normalisation are state, not params.

    ResNet-50 is `widths=(256, 512, 1024, 2048), depths=(3, 4, 6, 3)`. ResNet-18 is
    `widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), block='basic'`.

    Args:
        widths: number of output channels of each stage.
        depths: number of blocks in each stage.
        classes: number of classes.
        block: "basic" has two 3x3 convolutions; "bottleneck" has convolutions of 1x1, 3x3 and 1x1, the first two with a
            quarter of the channels.
        stem: number of output channels of the first convolution.
        channels: number of channels of an image.
        early_stride: put the stride of a bottleneck block into the first convolution, as originally published, instead
            of the second.
        first_stride: stride of the first stage; the other stages have stride 2.

    Raises:
        ValueError: `widths` and `depths` have different lengths, a size is not positive, or the images have another
            number of channels than `channels`.
    """
    if not widths or len(widths) != len(depths) or min(*widths, *depths, stem) < 1:
        raise ValueError(f"every stage needs a positive width and a positive depth; got {widths=}, {depths=}, {stem=}")

    def sizes(width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
        if block == "basic":
            return (width, 3, stride), (width, 3, 1)
        strides = (stride, 1) if early_stride else (1, stride)
        return (width // 4, 1, strides[0]), (width // 4, 3, strides[1]), (width, 1, 1)

    def make(rngs: nnx.Rngs, batch: RowsLike) -> ResNet:
        image_channels = batch["image"].shape[-1]
        if image_channels != channels:
            raise ValueError(f"the images have {image_channels} channels, but the model has channels={channels}")
        stages, inputs = [], stem
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stride = 2 if number else first_stride
            first = Block(inputs, sizes(width, stride), stride, rngs=rngs)
            stages.append([first, *(Block(width, sizes(width, 1), 1, rngs=rngs) for _ in range(depth - 1))])
            inputs = width
        return ResNet(channels, stem, stages, classes, inputs, rngs=rngs)

    return from_nnx(make)


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    family.require_supported(config, {"hidden_act": ("relu",), "layer_type": ("basic", "bottleneck")})
    return {
        "widths": tuple(config.get("hidden_sizes", (256, 512, 1024, 2048))),
        "depths": tuple(config.get("depths", (3, 4, 6, 3))),
        "classes": family.num_classes(config),
        "block": config.get("layer_type", "bottleneck"),
        "stem": config.get("embedding_size", 64),
        "channels": config.get("num_channels", 3),
        "early_stride": config.get("downsample_in_bottleneck", False),
        "first_stride": 2 if config.get("downsample_in_first_stage", False) else 1,
    }


def _config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = family.with_defaults(resnet_imagenet, arguments)
    return {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "hidden_sizes": list(settings["widths"]),
        "depths": list(settings["depths"]),
        "layer_type": settings["block"],
        "embedding_size": settings["stem"],
        "num_channels": settings["channels"],
        "hidden_act": "relu",
        "downsample_in_bottleneck": settings["early_stride"],
        "downsample_in_first_stage": settings["first_stride"] == 2,
        **family.label_names(settings["classes"]),
    }


def _rules(arguments: Mapping[str, Any]) -> tuple[Rule, ...]:
    block, hf_block = r"stages/(\d+)/(\d+)/", "resnet.encoder.stages.{0}.layers.{1}."
    layers = {
        "stem": "resnet.embedder.embedder",
        rf"{block}layers/(\d+)": f"{hf_block}layer.{{2}}",
        f"{block}shortcut": f"{hf_block}shortcut",
    }
    convs = (Rule(f"{name}/conv/kernel", f"{hf_name}.convolution.weight", "conv") for name, hf_name in layers.items())
    norms = (
        rule
        for name, hf_name in layers.items()
        for rule in batch_norm_rules(f"{name}/norm", f"{hf_name}.normalization")
    )
    head = Rule("head/kernel", "classifier.1.weight", "linear"), Rule("head/bias", "classifier.1.bias")
    return (*convs, *norms, *head)


family.register(
    Family(
        resnet_imagenet,
        ("resnet",),
        _arguments,
        _config,
        _rules,
        prefix=r"resnet\.",
        fresh=r"head/.*",
        ignored=r".*num_batches_tracked",
    )
)
