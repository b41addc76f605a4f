"""Run the published code of two relational losses on seeded embeddings in float64, and write values and gradients.

In an environment of its own with torch (never a dependency of ours), and a checkout of each repository:

    python tests/golden/relations_reference.py RepDistiller Knowledge-Distillation-Zoo

`crd`: two steps of RepDistiller, by the method's first author, over the same banks with given negatives. `cc`: the
Gaussian kernel of Knowledge-Distillation-Zoo; RepDistiller's CC is another loss, see `losses/cc.py`.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS, STUDENT, TEACHER, WIDTH, RECORDS, NEGATIVES = 6, 5, 7, 4, 13, 8
draw = np.random.Generator(np.random.Philox(0))
normal = lambda *shape: torch.tensor(draw.standard_normal(shape), requires_grad=True)


def module(file: Path) -> Any:
    """Import a file as a module of its own, since its package may import what is not installed here."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def crd(repository: Path) -> dict[str, np.ndarray]:
    sys.path.insert(0, str(repository))
    from crd.criterion import CRDLoss
    from crd.memory import AliasMethod

    AliasMethod.cuda = lambda self: None  # negatives are given, so its sampler is not used
    options = {"s_dim": STUDENT, "t_dim": TEACHER, "feat_dim": WIDTH, "n_data": RECORDS}
    loss = CRDLoss(type("options", (), {**options, "nce_k": NEGATIVES, "nce_t": 0.07, "nce_m": 0.5}))
    found = {f"params/{name}": x for name, x in loss.named_parameters()}
    banks = lambda when: {f"{when}/bank{n}": getattr(loss.contrast, f"memory_v{n}").clone() for n in (1, 2)}
    found |= banks("0")
    for step in (1, 2):
        student, teacher = normal(ROWS, STUDENT), normal(ROWS, TEACHER)
        index = torch.tensor(draw.permutation(RECORDS)[:ROWS])
        negatives = torch.tensor(draw.integers(0, RECORDS, (ROWS, NEGATIVES)))
        value = loss(student, teacher, index, torch.cat([index[:, None], negatives], 1)).squeeze()
        wanted = {"student": student, "teacher": teacher, **dict(loss.named_parameters())}
        slopes = torch.autograd.grad(value, wanted.values())
        found |= {f"{step}/student": student, f"{step}/teacher": teacher, f"{step}/index": index}
        found |= {
            f"{step}/negatives": negatives,
            f"{step}/value": value,
            f"{step}/z": loss.contrast.params[2:4].clone(),
        }
        found |= {f"{step}/grad/{name}": slope for name, slope in zip(wanted, slopes, strict=True)} | banks(str(step))
    return {f"crd/{name}": x.detach().numpy() for name, x in found.items()}


def cc(repository: Path) -> dict[str, np.ndarray]:
    student, teacher = normal(16, 12), normal(16, 20)
    value = module(repository / "kd_losses" / "cc.py").CC(gamma=0.4, P_order=2)(student, teacher.detach())
    (slope,) = torch.autograd.grad(value, student)
    found = {"student": student, "teacher": teacher, "value": value, "grad": slope}
    return {f"cc/{name}": x.detach().numpy() for name, x in found.items()}


def main() -> None:
    torch.set_default_dtype(torch.float64)  # before any layer, since they keep T and Z in an array of this type
    torch.manual_seed(0)
    distiller, zoo = map(Path, sys.argv[1:])
    np.savez_compressed(Path(__file__).with_name("relations.npz"), **crd(distiller), **cc(zoo))


if __name__ == "__main__":
    main()
