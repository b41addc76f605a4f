"""A small ViT taught by a base one, beside PyTorch: python -m experiments.benchmarks.vit --torch PYTHON [--size gpu]

Soft targets of images of 16 x 16 patches, AdamW.
"""

import jax

from experiments.benchmarks.measured import compare, learning, told
from experiments.benchmarks.sizes import CLASSES, SIZES, TEMPERATURE
from jaxdistill.core import registry


def main() -> None:
    known = told(__doc__)
    size = SIZES["vit"][known.size]
    shape = {"patch": 16, "depth": size["depth"], "classes": CLASSES["vit"], "pool": "token", "channels": 3}
    network = lambda width, heads: registry.models["vit"](**shape, width=width, heads=heads, image=size["image"])
    image = jax.random.normal(jax.random.key(0), (size["rows"], size["image"], size["image"], 3))
    batch = {"image": image, "mask": jax.numpy.ones(size["rows"])}
    terms = {"kd": (f"kd(temperature={TEMPERATURE})", 1.0)}
    compare("vit", learning(network(*size["student"]), network(*size["teacher"]), terms, batch, known.size), known)


if __name__ == "__main__":
    main()
