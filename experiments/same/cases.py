"""Short runs that together pass through every step and every kind of teacher: FILE.py:CASE.

The file is a config like any other. It is written in the language of the oldest commit that it is compared with, so
that it also shows that configs of that commit still run.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxdistill.config import choose, differ, make
from jaxdistill.registry import datasets

TAUGHT = "../taught/teachers/big"  # the checkpoint that the first case leaves; cases run in sibling folders


class Case(NamedTuple):
    """One run.

    differences: from the base config
    devices: virtual CPU devices of a process
    processes: how many run together
    first: commands that run before it
    split: the base alone takes the first half of the steps, and either commit continues that run
    """

    differences: dict[str, Any]
    devices: int = 1
    processes: int = 1
    first: tuple[str, ...] = ()
    split: bool = False


class Labelled(list):
    """Records of four classes."""

    classes = 4


@datasets.register
def patterns(split: str) -> Labelled:
    """Four patterns of 8 x 8 pixels under noise."""
    prototypes = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1))
    seed, rows = {"train": (1, 250), "test": (2, 90), "extra": (3, 42)}[split]
    labels = np.arange(rows) % 4
    noise = np.random.default_rng(seed).normal(0, 120, (rows, 8, 8, 1))
    images = np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8)
    return Labelled({"image": image, "label": label} for image, label in zip(images, labels, strict=True))


@datasets.register
def chains(split: str) -> list[dict[str, np.ndarray]]:
    """Sequences of eight tokens in which each token but the first follows from the one before, under noise."""
    draw = np.random.default_rng({"train": 1, "test": 2}[split])
    records = []
    for _ in range({"train": 200, "test": 40}[split]):
        jumps = 1 + (draw.random(9) < 0.2) * draw.integers(0, 8, 9)
        tokens = (draw.integers(0, 16) + np.cumsum(jumps)) % 16
        real = np.arange(8) < draw.integers(4, 9)
        records.append(
            {
                "input_ids": tokens[:-1].astype(np.int32),
                "label": tokens[1:].astype(np.int32),
                "mask": real.astype(np.float32),
                "segment_ids": real.astype(np.int32),
            }
        )
    return records


def decoder(width: int) -> str:
    """A small language model."""
    return f"decoder(vocabulary=16, width={width}, depth=2, heads=2, kv_heads=1, head_size=4, ffn=16)"


BIG = {"model": "mlp(widths=(16, 16), classes=4)"}
TEACHER = {"big": {**BIG, "steps": 30}}
CHECKPOINT = {**BIG, "checkpoint": TAUGHT}
TASKS = "terms=('kd', 'cross_entropy')"
QUIZ = {"streams": {"quiz": {"split": "extra"}}}
TOKENS = {
    "student": {"model": decoder(8)},
    "teachers": {"big": {"model": decoder(16), "steps": 30}},
    "data": {"name": "chains"},
    "evaluate": {"every": 30, "batch_size": 32, "layers": ((-1, -1),)},
}
GATE = {
    "teachers": {"big": {**BIG, "steps": 30}, "small": {"model": "mlp(widths=(8, 8), classes=4)", "steps": 30}},
    "fusion": "gate(inputs=('student', 'teachers'), width=8)",
}
LAYERS = {"kd": {"weight": 0.5}, "hidden": {"weight": 0.1}, "cross_entropy": {"weight": 0.5}}
HALVES = "tasks(groups=((0, 1), (2, 3)), steps=15)"

CASES = {
    "taught": Case({}),
    # steps
    "routing": Case({**GATE, **QUIZ, "step": "routing(by='quiz')"}),
    "routing-labels": Case({**GATE, "step": "routing()", "streams": {"calibration": {"split": "extra"}}}),
    "routing-probes": Case(
        {
            "teachers": TEACHER,
            "objective": {"routed_hidden": {"term": "routed_hidden(layers=((1, 0), (1, 1)))"}, "cross_entropy": {}},
            "fusion": "gate(inputs=('student',), paths=2)",
            "step": "routing(probes=(0, 1))",
            "streams": {"calibration": {"split": "extra"}},
        }
    ),
    "meta": Case({**QUIZ, "step": "meta(learns=('teachers', 'weights', 'temperature'), inner_steps=2)"}),
    "pseudo_labels": Case({**QUIZ, "step": "pseudo_labels()"}),
    "tuned_teacher": Case({**QUIZ, "step": "tuned_teacher(updates=4)"}),
    "averaged": Case(
        {
            "student": {"model": "mlp(widths=(8, 8), classes=4)"},
            "teachers": {"mean": {"model": "mlp(widths=(8, 8), classes=4)"}},
            "step": "averaged(momentum=0.9)",
        }
    ),
    "mutual": Case({"teachers": {"peer": BIG}, "step": f"mutual({TASKS})"}),
    "replay": Case(
        {
            "teachers": {},
            "objective": {"cross_entropy": {}},
            "step": "replay(size=40)",
            "data": {"name": "patterns", "order": HALVES},
        }
    ),
    "ewc": Case(
        {
            "teachers": {},
            "objective": {"cross_entropy": {}},
            "step": "ewc(weight=10.0, every=15)",
            "data": {"name": "patterns", "order": HALVES},
        }
    ),
    "uncertainty": Case({"step": f"uncertainty({TASKS})"}),
    "gradnorm": Case({"step": f"gradnorm({TASKS})"}),
    "mgda": Case({"step": f"mgda({TASKS})"}),
    "on_policy": Case(
        {
            **TOKENS,
            "step": "on_policy(prompt=3, share=0.5)",
            "objective": {"kd": {"stream": "samples"}, "cross_entropy": {"weight": 0.5}},
        }
    ),
    # kinds of teachers
    "cached": Case(
        {
            "teachers": {"big": {**CHECKPOINT, "cache": "outputs(folder='cache', top=2, layers=(0, 1))"}},
            "objective": LAYERS,
        },
        first=("cache",),
    ),
    "drawn": Case(
        {
            "teachers": {"big": {**CHECKPOINT, "cache": "draws(folder='cache', count=16, temperature=2.0)"}},
            "objective": {"kd": {"term": "kd(temperature=2.0)"}, "cross_entropy": {}},
        },
        first=("cache",),
    ),
    "submesh": Case(
        {
            "teachers": {"big": {**CHECKPOINT, "placement": "submesh(devices=2, layers=(0, 1))"}},
            "objective": LAYERS,
            "mesh": {"data": 2},
        },
        devices=4,
    ),
    "int8": Case({"teachers": {"big": {**CHECKPOINT, "quantized": "int8"}}}),
    "fp8": Case({"teachers": {"big": {**CHECKPOINT, "quantized": "fp8"}}}),
    # precision, memory, devices
    "bfloat16": Case({"dtype": "bfloat16", "objective": LAYERS}),
    "accumulate": Case({"accumulate": 4}),
    "chunks": Case({**TOKENS, "chunks": 4, "objective": LAYERS}),
    "chunks-cached": Case(
        {
            **TOKENS,
            "chunks": 4,
            "teachers": {
                "big": {
                    "model": decoder(16),
                    "checkpoint": "../chunks/teachers/big",
                    "cache": "outputs(folder='cache', top=4)",
                }
            },
        },
        first=("cache",),
    ),
    "pmap": Case({"mesh": {"backend": "pmap"}}, devices=8),
    "mesh": Case(
        {
            "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
            "student": {"model": "mlp(widths=(8, 8, 8), classes=4, dropout=0.1)"},
            "objective": {**LAYERS, "rkd": {"weight": 0.1}},
        },
        devices=8,
    ),
    "processes": Case({"mesh": {"data": 2, "fsdp": 2}}, devices=2, processes=2),
    # the base writes, both go on
    "resumed": Case({"objective": LAYERS, "evaluate": {"every": 5, "batch_size": 32}}, split=True),
}


def get_config(name: str = "taught"):
    base = make(
        steps=30,
        batch_size=32,
        student={"model": "mlp(widths=(8, 8), classes=4, dropout=0.1)"},
        teachers=TEACHER,
        objective={"kd": {"weight": "linear(start=0.9, end=0.5)"}, "cross_entropy": {"weight": 0.1}},
        rate="cosine(start=0.01)",
        data={"name": "patterns"},
        evaluate={"every": 30, "batch_size": 32},
        mesh={"data": 1},
        logging={"every": 10, "tensorboard": False, "compilation_cache": "../../programs"},
    )
    return differ(base, **choose(name, CASES).differences)
