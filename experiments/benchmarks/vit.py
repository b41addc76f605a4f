"""Time a small ViT with a base ViT as teacher against PyTorch: python -m experiments.benchmarks.vit --torch PYTHON

The loss is soft targets on images cut into patches of 16 x 16 pixels; the optimiser is AdamW. `--size gpu` uses the
shapes of a real run.
"""

import jax

from experiments.benchmarks.measured import compare, parse_arguments, training_step
from experiments.benchmarks.sizes import CLASSES, SIZES, TEMPERATURE
from jaxdistill.core import registry


def main() -> None:
    args = parse_arguments(__doc__)
    size = SIZES["vit"][args.size]
    shape = {"patch": 16, "depth": size["depth"], "classes": CLASSES["vit"], "pool": "token", "channels": 3}
    network = lambda width, heads: registry.models["vit"](**shape, width=width, heads=heads, image=size["image"])
    image = jax.random.normal(jax.random.key(0), (size["rows"], size["image"], size["image"], 3))
    batch = {"image": image, "mask": jax.numpy.ones(size["rows"])}
    terms = {"kd": (f"kd(temperature={TEMPERATURE})", 1.0)}
    compare("vit", training_step(network(*size["student"]), network(*size["teacher"]), terms, batch, args.size), args)


if __name__ == "__main__":
    main()
