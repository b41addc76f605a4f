"""Tiny CLIP and SigLIP models of transformers, which `record.py` runs; needs torch."""

from functools import partial
from typing import Any

import numpy as np
import torch
from vision_reference import pixel_values
from weights import images, tokens

ROWS, LENGTH, VOCABULARY, END = 3, 7, 40, 39


def texts(ended: bool) -> dict[str, np.ndarray]:
    """Draw texts of 7, 5 and 3 tokens; if `ended`, the last token of each is END."""
    ids, mask = tokens(ROWS, LENGTH, END - 1), np.arange(LENGTH) < np.array([7, 5, 3])[:, None]
    if ended:
        ids[np.arange(ROWS), mask.sum(1) - 1] = END
    return {"input_ids": ids, "attention_mask": mask.astype(np.int32)}


def two_towers(kind: str, **settings: Any):
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    blocks = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text = blocks | {"hidden_size": 24 if kind == "clip" else 32, "vocab_size": VOCABULARY} | settings
    text |= {"max_position_embeddings": LENGTH, "bos_token_id": 0, "pad_token_id": 1, "projection_dim": 20}
    vision = blocks | {"hidden_size": 32, "image_size": 32, "patch_size": 8, "projection_dim": 20}
    make, model = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    top = {"projection_dim": 20} if kind == "clip" else {}
    config = make(text_config=text, vision_config=vision, attn_implementation="eager", **top)
    network, inputs = model(config), {"image": images(ROWS, 32), **texts(kind == "clip")}
    # SigLIP's checkpoints are trained without a mask of padding, which transformers does not know
    read = ("input_ids", "attention_mask") if kind == "clip" else ("input_ids",)
    ids = {name: torch.from_numpy(inputs[name].astype(np.int64)) for name in read}

    def run() -> dict[str, torch.Tensor]:
        out = network(pixel_values=pixel_values(inputs["image"]), output_hidden_states=True, **ids)
        seen = network.vision_model(pixel_values(inputs["image"]), output_hidden_states=True)
        states = {f"hidden/{n}": x for n, x in enumerate(seen.hidden_states)}
        return {
            "logits": out.logits_per_image,
            "embedding": out.image_embeds,
            "text_embedding": out.text_embeds,
            **states,
        }

    return network, config.to_diff_dict() | {"architectures": [model.__name__]}, inputs, run


REFERENCES = {
    "clip": partial(two_towers, "clip", eos_token_id=END),
    "clip_first": partial(two_towers, "clip", eos_token_id=2),
    "siglip": partial(two_towers, "siglip"),
}
