r"""Classify rows of numbers: a wide perceptron learns them and teaches a narrow one.

jaxdistill train --preset features --workdir runs/mine \
    --config.data.name="table(path='measured.npz', features='x', label='y')"

Numbers are read as they are: scale them before. Soft targets: Hinton, Vinyals and Dean, 2015
(arxiv.org/abs/1503.02531). Cost: a minute on 2 cores.
"""

from jaxdistill import make
from jaxdistill.run.config import Config


def get_config() -> Config:
    return make(
        title="A classifier of measurements, distilled",
        steps=1000,
        batch_size=64,
        rate="cosine(start=0.002, warmup=0.05)",
        data={"name": "table(path='data.npz', features='x', label='y')"},
        student={"model": "mlp(widths=(16,), classes={classes})"},
        teachers={"wide": {"model": "mlp(widths=(256, 256), classes={classes})", "steps": 1000}},
        objective={"kd": {"term": "kd(temperature=2.0)"}, "cross_entropy": {}},
        evaluate={"every": 250, "batch_size": 256, "layers": ()},
    )
