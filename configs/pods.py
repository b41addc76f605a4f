"""Language models on TPU pods, planned before a pod is rented: FILE.py:NAME, such as configs/pods.py:llama405.

Paper: Hinton, Vinyals and Dean, 2015 (arxiv.org/abs/1503.02531), for each token, plus the cross-entropy of the text:
Qwen3-32B into 4B (arxiv.org/abs/2505.09388) and Llama 3.1 405B into 8B (arxiv.org/abs/2407.21783), 4,096 tokens a row.
Commands:
    jaxdistill plan --config configs/pods.py:qwen3 --topology v6e:16x16
    jaxdistill plan --config configs/pods.py:llama405 --topology v5p:4x8x8
Cost: minutes on a laptop, without weights. experiments/pods has a table of what fits; tpu/README.md explains pod runs.

configs/shapes/ has the published config.json of each, and no weights. A real run must name a folder or hub id with
weights (--config.student.model, --config.teachers.large.model), and texts instead of random tokens (--config.data.name
and --config.data.tokens).
"""

from typing import NamedTuple

import numpy as np
from jaxdistill.registry import datasets

from jaxdistill import choose, make


class Pair(NamedTuple):
    """The folders of teacher and student in configs/shapes, and the size of their vocabulary."""

    teacher: str
    student: str
    vocabulary: int


PAIRS = {
    "qwen3": Pair("Qwen3-32B", "Qwen3-4B", 151936),
    "llama405": Pair("Llama-3.1-405B", "Llama-3.1-8B", 128256),
}


class Drawn:
    """Rows of random tokens, each seeded by its number: for plans, and to time a pod."""

    def __init__(self, vocabulary: int, length: int, rows: int, stream: int):
        self.vocabulary, self.length, self.rows, self.stream = vocabulary, length, rows, stream

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        drawn = np.random.default_rng((self.stream, row)).integers(self.vocabulary, size=self.length + 1)
        ids = drawn.astype(np.int32)
        return {"input_ids": ids[:-1], "label": ids[1:], "mask": np.ones(self.length, np.float32)}


@datasets.register
def drawn_tokens(vocabulary: int, length: int, split: str, rows: int = 2**20) -> Drawn:
    """Return rows of random tokens."""
    return Drawn(vocabulary, length, rows, {"train": 0, "test": 1}[split])


def get_config(name: str = "qwen3"):
    teacher, student, vocabulary = choose(name, PAIRS)
    return make(
        title=f"{teacher} into {student}",
        steps=10000,
        batch_size=256,
        chunks=8,
        dtype="bfloat16",
        student={"model": f"pretrained('configs/shapes/{student}', remat='full')"},
        teachers={"large": {"model": f"pretrained('configs/shapes/{teacher}')"}},
        objective={
            "kd": {"term": "kd(temperature=1.0)", "weight": 0.9},
            "cross_entropy": {"weight": 0.1},
        },
        control=False,
        optimizer="adamw(weight_decay=0.1, b2=0.95)",
        rate="cosine(start=0.0001, warmup=0.02)",
        clip_norm=1.0,
        data={"name": f"drawn_tokens(vocabulary={vocabulary}, length=4096)"},
        evaluate={"every": 1000, "batch_size": 256},
        mesh={"data": 1, "fsdp": -1},
    )
