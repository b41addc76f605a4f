"""Vision families as transformers and timm have them, tiny; needs torch. Run by `record.py`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from weights import images


class Published:
    """A torch model under the names that its checkpoints have on disk, where those are not the names in memory."""

    def __init__(self, model: torch.nn.Module, name: Callable[[str], str]):
        self.model, self.name = model, name
        self.eval, self.zero_grad = model.eval, model.zero_grad

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {self.name(n): x for n, x in self.model.state_dict().items()}

    def named_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(self.name(n), x) for n, x in self.model.named_parameters()]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def pixel_values(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


# EfficientNet-Lite


def efficientnet_name(stages: tuple[tuple[int, ...], ...], name: str) -> str:
    """timm's name as the published weights have it."""
    top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    first, rest = name.split(".", 1)
    if first in top:
        return f"{top[first]}.{rest}"
    stage, block, layer, leaf = rest.split(".")
    plain = ("conv_dw", "bn1", "conv_pw", "bn2")
    theirs = plain if stages[int(stage)][4] == 1 else ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    ours = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")[-len(theirs) :]
    number = sum(depth for _, depth, *_ in stages[: int(stage)]) + int(block)
    return f"_blocks.{number}.{dict(zip(theirs, ours, strict=True))[layer]}.{leaf}"


def efficientnet_said(model: torch.nn.Module, image: np.ndarray) -> dict[str, torch.Tensor]:
    """Logits, embedding and hidden states of one of timm's EfficientNets."""
    states, hooks = [], []
    for module in [model.bn1, *(block for stage in model.blocks for block in stage)]:
        hooks.append(module.register_forward_hook(lambda module, args, out: states.append(channels_last(out))))
    features = model.forward_features(pixel_values(image))
    for hook in hooks:
        hook.remove()
    said = {"logits": model.forward_head(features), "embedding": features.mean((2, 3))}
    return said | {f"hidden/{n}": x for n, x in enumerate(states)}


def efficientnet() -> tuple[Any, dict[str, Any], dict[str, np.ndarray], Callable[[], Mapping[str, Any]]]:
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    stages = ((8, 1, 3, 1, 1), (12, 2, 3, 2, 6), (16, 2, 5, 2, 6), (16, 1, 3, 1, 6))
    blocks = [f"{'ds' if e == 1 else 'ir'}_r{n}_k{k}_s{s}_e{e}_c{c}" for c, n, k, s, e in stages]
    model = EfficientNet(
        decode_arch_def([[block] for block in blocks]),
        num_classes=5,
        num_features=24,
        stem_size=8,
        fix_stem=True,
        pad_type="same",
        act_layer=torch.nn.ReLU6,
        norm_layer=partial(torch.nn.BatchNorm2d, eps=1e-3),
        round_chs_fn=lambda channels: int(channels),
    )
    config = {"model_type": "efficientnet_lite", "num_labels": 5, "stem_size": 8, "stages": stages, "top_size": 24}
    image = images(2, 30)  # 30, 15, 8, 4: odd and even extents under strides
    published = Published(model, partial(efficientnet_name, stages))
    return published, config, {"image": image}, lambda: efficientnet_said(model, image)


REFERENCES = {"efficientnet_lite": efficientnet}
