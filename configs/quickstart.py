"""Quickstart: a small perceptron learns 5,000 real handwritten digits from a residual network.

Paper: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015 (arxiv.org/abs/1503.02531).
Command: python -m jaxdistill.main --config configs/quickstart.py --workdir runs/quickstart
"""

from jaxdistill.config import make


def get_config():
    return make(
        title="Quickstart: digits",
        steps=1500,
        batch_size=128,
        student={"model": "mlp(widths=(64, 64), classes=10)"},
        teachers={
            "resnet": {
                "model": "resnet(widths=(16, 32, 64), blocks=1, classes=10)",
                "steps": 600,
                "rate": "cosine(start=0.005)",
            }
        },
        objective={
            "kd": {"term": "kd(temperature=4.0)", "weight": 0.9},
            "cross_entropy": {"weight": 0.1},
        },
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003, warmup=0.05)",
        data={"name": "mnist5k", "augment": ("shift(pixels=2)",)},
        evaluate={"every": 250, "batch_size": 500},
    )
