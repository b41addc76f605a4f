"""Quickstart: a one-layer perceptron learns real handwritten digits from a residual network.

Paper: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015 (arxiv.org/abs/1503.02531): the
teacher is trained on shifted digits; the student sees unshifted ones, and learns from the teacher what the shifts
taught.
Command: python -m jaxdistill.main --config configs/quickstart.py --workdir runs/quickstart (3 minutes on 2 cores)
Result (seed 0): teacher 98.1 %, student 93.9 %, control (the same student on labels alone) 92.7 %. Over 5 seeds with
searched rates: +0.96 points.
"""

from jaxdistill import make


def get_config():
    return make(
        title="Quickstart: digits",
        steps=1000,
        student={"model": "mlp(widths=(128,), classes=10)"},
        teachers={
            "resnet": {
                "model": "resnet(widths=(16, 32, 64, 128), blocks=1, classes=10)",
                "steps": 400,
                "rate": "cosine(start=0.005)",
                "augment": ("shift(pixels=2)",),
            }
        },
        objective={
            "kd": {"term": "kd(temperature=4.0)", "weight": 0.9},
            "cross_entropy": {"weight": 0.1},
        },
        optimizer="adamw(weight_decay=0.0001)",
        rate="cosine(start=0.003)",
        data={"name": "mnist5k"},
    )
