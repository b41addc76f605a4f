"""Pictures of two colours with their names, and configs of two towers that learn them."""

import numpy as np
from corpora import WORDS, sentences

from jaxdistill import make

COLOURS = WORDS[5:]


def squares(split: str):
    """Return pictures of two colours with the names of both; no pair of colours is in both splits."""
    both = [(a, b) for a in range(len(COLOURS)) for b in range(len(COLOURS))]
    chosen = [pair for pair in both if (sum(pair) % 4 == 0) == (split == "test")]
    draw = np.random.default_rng(len(split))
    palette = np.random.default_rng(0).integers(0, 256, (len(COLOURS), 3))
    records = []
    for a, b in chosen * 2:  # each text has two pictures
        image = np.concatenate([np.tile(palette[x], (8, 4, 1)) for x in (a, b)], axis=1)
        image = np.clip(image + draw.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
        records.append({"image": image, "text": f"{COLOURS[a]} {COLOURS[b]}"})
    return records


def towers(width: int, more: str = "") -> str:
    text = f"bert(vocabulary={len(WORDS)}, width={width}, depth=1, heads=2, ffn={width}, positions=8, classes=0)"
    return f"towers(images=mlp(widths=({width},), classes=1), texts={text}, width={width}{more})"


def config_of(home, **more):
    plain = {
        "steps": 60,
        "batch_size": 16,
        "student": {"model": towers(16)},
        "teachers": {"big": {"model": towers(32), "steps": 120}},
        "objective": {"affinity": {}, "contrastive": {}},
        "task": {"contrastive": {}},
        "optimizer": "adamw()",
        "rate": "cosine(start=0.01)",
        "data": {"name": "squares", "tokens": sentences(home, 8)},
        "evaluate": {"every": 30, "batch_size": 16, "layers": ()},
        "logging": {"tensorboard": False},
        "mesh": {"data": 1},
    }
    return make(**plain | more)
