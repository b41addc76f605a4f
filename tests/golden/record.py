"""Run published models on seeded weights, and write their inputs, logits, hidden states and gradients.

In an environment of its own with torch, transformers and timm (never a dependency of ours):

    python tests/golden/record.py            # all
    python tests/golden/record.py bert_cls   # some

Only names and shapes of the weights are written, since `weights.py` makes them again; of each gradient, only the
product with a seeded direction.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

FAMILIES = ("bert_reference", "decoder_reference", "vision_reference", "clip_reference")


def seed(model: Any) -> dict[str, list[int]]:
    """Give a torch model the seeded weights; return the names and shapes of all of them, tied ones once."""
    import torch
    from weights import weight

    model.eval()
    shapes, seen = {}, set()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                shapes[name] = list(tensor.shape)
                tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return shapes


def keep(
    name: str,
    model: Any,
    config: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    run: Callable[[], Mapping[str, Any]],
) -> None:
    """Run a model and write `name.npz`.

    Args:
        model: a torch model, whose weights are seeded here.
        config: the config of the model, as transformers writes it.
        inputs: our batch, in our layout (images `[rows, height, width, channels]`).
        run: `() -> {"logits": ..., "hidden/0": ..., "embedding": ...}` as torch tensors in OUR layout; called after
            seeding. The scalar whose gradient is kept is `sum(sin(logits))`.
    """
    import torch

    shapes = seed(model)
    model.zero_grad()
    outputs = run()
    torch.sin(outputs["logits"]).sum().backward()
    from weights import weight

    gradients = {
        f"grad/{n}": np.float64((p.grad.double().numpy() * weight(f"direction/{n}", tuple(p.shape))).sum())
        for n, p in model.named_parameters()
        if p.grad is not None
    }
    versions = {module: importlib.import_module(module).__version__ for module in ("torch", "transformers")}
    np.savez_compressed(
        HERE / f"{name}.npz",
        about=json.dumps({"config": config, "shapes": shapes, "versions": versions}),
        **{f"in/{n}": x for n, x in inputs.items()},
        **{f"out/{n}": x.detach().numpy() for n, x in outputs.items()},
        **gradients,
    )
    print(f"{name}: {', '.join(outputs)}, {len(gradients)} gradients", file=sys.stderr)


def main() -> None:
    wanted = sys.argv[1:]
    for family in FAMILIES:
        if (HERE / f"{family}.py").exists():
            for name, make in importlib.import_module(family).REFERENCES.items():
                if not wanted or name in wanted:
                    keep(name, *make())


if __name__ == "__main__":
    main()
