"""Tiny vision models of transformers and timm, which `record.py` runs; needs torch."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from weights import images


class Published:
    """A torch model whose arrays have the names of its checkpoints on disk, which differ from those in memory."""

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
    """Return the name in the published weights for timm's name of an array."""
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
    """Run one of timm's EfficientNets; return logits, embedding and hidden states."""
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
    image = images(2, 30)  # sizes 30, 15, 8 and 4, so that strides meet odd and even sizes
    published = Published(model, partial(efficientnet_name, stages))
    return published, config, {"image": image}, lambda: efficientnet_said(model, image)


# Transformers

DISK = {  # names of a vision transformer in memory, and on disk since 2021
    r"\.layers\.": ".encoder.layer.",
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}


def on_disk(name: str) -> str:
    if name.startswith("dinov2"):
        names = {key: disk for key, disk in DISK.items() if key.startswith("attention")}
    else:
        names = DISK if name.startswith(("vit.", "deit.")) else {}
    for memory, disk in names.items():
        name = re.sub(memory, disk, name)
    return name


def made(model: torch.nn.Module, image: np.ndarray, said: Callable[[Any], Mapping[str, torch.Tensor]], **options: bool):
    """Return the arguments of `record.keep` for a classifier; `said` picks its embedding and hidden states."""

    def run() -> dict[str, torch.Tensor]:
        out = model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), output_hidden_states=True, **options)
        return {"logits": out.logits, **said(out)}

    config = model.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    return Published(model, on_disk), config, {"image": image}, run


TITLES = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassificationWithTeacher",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
}
CONFIGS = {
    "vit": "ViTConfig",
    "deit": "DeiTConfig",
    "dinov2": "Dinov2Config",
    "dinov2_with_registers": "Dinov2WithRegistersConfig",
}


def transformer(kind: str, sides: tuple[int, int] = (32, 32), **settings: Any):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    every = sizes | {"image_size": 32, "patch_size": 8, "num_labels": 5, "attn_implementation": "eager"} | settings
    config = getattr(transformers, CONFIGS[kind])(**every)
    title = TITLES[kind]
    model = getattr(transformers, title)(config)
    states = []
    getattr(model, kind).layernorm.register_forward_hook(lambda module, args, out: states.append(out))

    def said(out: Any) -> dict[str, torch.Tensor]:
        every = {f"hidden/{n}": x for n, x in enumerate(out.hidden_states)}
        every |= {f"attention/{n}": x for n, x in enumerate(out.attentions)}
        return every | {"embedding": states[-1][:, 0]}

    image = images(2, max(sides))[:, : sides[0], : sides[1]]
    return made(model, image, said, output_attentions=True)


def resnet(**settings: Any):
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 1], "num_labels": 5}
    model = ResNetForImageClassification(ResNetConfig(**sizes | settings))

    def said(out: Any) -> dict[str, torch.Tensor]:
        states = {f"hidden/{n}": channels_last(x) for n, x in enumerate(out.hidden_states)}
        return states | {"embedding": out.hidden_states[-1].mean((2, 3))}

    return made(model, images(2, 30), said)


REFERENCES = {
    "efficientnet_lite": efficientnet,
    "vit": partial(transformer, "vit"),
    "vit_variant": partial(transformer, "vit", hidden_act="gelu_new", qkv_bias=False, layer_norm_eps=1e-6),
    "deit": partial(transformer, "deit"),
    "dinov2": partial(transformer, "dinov2", mlp_ratio=2, layerscale_value=0.5),
    "dinov2_registers": partial(transformer, "dinov2_with_registers", mlp_ratio=2, num_register_tokens=3),
    "dinov2_smaller": partial(transformer, "dinov2", (24, 16), mlp_ratio=2),  # interpolated positions
    "dinov2_wider": partial(transformer, "dinov2", (32, 48), mlp_ratio=2),
    "dinov2_registers_smaller": partial(
        transformer, "dinov2_with_registers", (16, 24), mlp_ratio=2, num_register_tokens=3
    ),
    "resnet_bottleneck": resnet,
    "resnet_variant": partial(resnet, downsample_in_bottleneck=True, downsample_in_first_stage=True),
    "resnet_basic": partial(resnet, layer_type="basic", hidden_sizes=[8, 16]),
}
