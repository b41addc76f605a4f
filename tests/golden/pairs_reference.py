"""Run open_clip's losses on seeded embeddings in float64, and write values and gradients.

In an environment of its own with torch (never a dependency of ours), and a checkout of mlfoundations/open_clip:

    python tests/golden/pairs_reference.py OPEN_CLIP
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS, STUDENT, TEACHER = 6, 5, 7
draw = np.random.Generator(np.random.Philox(0))
unit = lambda x: x / x.norm(dim=-1, keepdim=True)


def normal(*shape: int) -> Any:
    return torch.tensor(draw.standard_normal(shape), requires_grad=True)


def main() -> None:
    file = Path(sys.argv[1]) / "src" / "open_clip" / "loss.py"
    spec = importlib.util.spec_from_file_location("loss", file)
    loss = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loss)
    seen = {"image": normal(ROWS, STUDENT), "text": normal(ROWS, STUDENT)}
    taught = {"teacher_image": normal(ROWS, TEACHER), "teacher_text": normal(ROWS, TEACHER)}
    scale, teacher_scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (4.0, 9.0, -3.0))
    both = unit(seen["image"]), unit(seen["text"])
    target = unit(taught["teacher_image"]), unit(taught["teacher_text"])
    contrastive = loss.ClipLoss()(*both, scale)
    _, affinity = loss.DistillClipLoss()(*both, scale, *target, teacher_scale)
    values = {"contrastive": contrastive, "affinity": affinity, "sigmoid": loss.SigLipLoss()(*both, scale, bias)}
    found = {name: x.detach().numpy() for name, x in {**seen, **taught}.items()}
    for name, value in values.items():
        wanted = {**seen, "scale": scale} | ({"bias": bias} if name == "sigmoid" else {})
        slopes = torch.autograd.grad(value, list(wanted.values()), retain_graph=True)
        found[f"{name}/value"] = value.detach().numpy()
        found |= {f"{name}/grad/{key}": slope.numpy() for key, slope in zip(wanted, slopes, strict=True)}
    np.savez(Path(__file__).with_name("pairs.npz"), scale=4.0, teacher_scale=9.0, bias=-3.0, **found)


if __name__ == "__main__":
    main()
