"""Run the published code of losses between hidden states, and write values and gradients to `layer_losses.npz`.

In an environment of its own with torch (never a dependency of ours), beside checkouts of the published code:

    python tests/golden/layer_losses_reference.py REPDISTILLER SEMCKD REVIEWKD

    REPDISTILLER  github.com/HobbitLong/RepDistiller at b84f547: attention transfer, NST, FSP, VID
    SEMCKD        github.com/DefangChen/SemCKD at ebe5db1
    REVIEWKD      github.com/dvlab-research/ReviewKD at cede6ea

All in float64 and in OUR layout: states `[batch, height, width, channels]`, kernels `[*window, inputs, outputs]`,
parameters by the names that our terms give them. `<method>/value` is the loss that the published code computes,
`<method>/grad/...` its gradient.
"""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from weights import weight  # noqa: E402  (it lies beside this script)

torch.set_default_dtype(torch.float64)
kept: dict[str, np.ndarray] = {}


def load(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def states(name: str, rows: int, *shapes: tuple[int, int]) -> list[torch.Tensor]:
    """Draw feature maps of these (channels, size), with zeros and positive values as after a ReLU."""
    draw = np.random.Generator(np.random.Philox(len(name)))
    shaped = [draw.standard_normal((rows, channels, size, size)) for channels, size in shapes]
    return [torch.from_numpy(np.maximum(x + 0.3, 0)).requires_grad_() for x in shaped]


def seed(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, x in module.named_parameters():
            if not name.endswith("log_scale"):
                x.copy_(torch.from_numpy(weight(name, tuple(x.shape)).astype(np.float64)))
            else:  # its first value is the same for all channels
                x.add_(torch.from_numpy(weight(name, tuple(x.shape)).astype(np.float64)))


def ours(x: torch.Tensor) -> np.ndarray:
    """Convert a feature map, a dense kernel or a vector to our layout."""
    x = x.detach().numpy()
    return x if x.ndim < 2 else x.T if x.ndim == 2 else x.transpose(0, 2, 3, 1)


def kernel(x: torch.Tensor) -> np.ndarray:
    x = x.detach().numpy().transpose(2, 3, 1, 0)
    return x[0, 0] if x.shape[:2] == (1, 1) else x


def keep(
    method: str,
    value: torch.Tensor,
    student: list[torch.Tensor],
    teacher: list[torch.Tensor],
    params: Mapping[str, torch.nn.Parameter] | None = None,
) -> None:
    value.backward()
    kept[f"{method}/value"] = value.detach().numpy()
    for number, x in enumerate(student):
        kept[f"{method}/student/{number}"] = ours(x)
        kept[f"{method}/grad/student/{number}"] = ours(x.grad)
    for number, x in enumerate(teacher):
        kept[f"{method}/teacher/{number}"] = ours(x)
    for name, x in (params or {}).items():
        shaped = kernel if x.ndim == 4 else ours
        kept[f"{method}/params/{name}"], kept[f"{method}/grad/params/{name}"] = shaped(x), shaped(x.grad)


def repdistiller(folder: Path) -> None:
    zoo = {name: load(folder / "distiller_zoo" / f"{name}.py", name) for name in ("AT", "NST", "FSP", "VID")}
    for case, (ours_size, theirs) in {"larger": (8, 5), "smaller": (4, 6)}.items():
        student, teacher = states("as", 2, (3, ours_size)), states("teacher", 2, (4, theirs))
        keep(f"attention_transfer_{case}", sum(zoo["AT"].Attention()(student, teacher)), student, teacher)
        student, teacher = states("as", 2, (3, ours_size)), states("teacher", 2, (4, theirs))
        keep(f"nst_{case}", sum(zoo["NST"].NSTLoss()(student, teacher)), student, teacher)
    student, teacher = states("as", 2, (3, 6), (5, 6)), states("teacher", 2, (4, 6), (2, 6))
    keep("nst_two_pairs", sum(zoo["NST"].NSTLoss()(student, teacher)), student, teacher)

    student, teacher = states("as", 2, (3, 8), (2, 4), (4, 3)), states("teacher", 2, (3, 6), (2, 6), (4, 5))
    matched = zoo["FSP"].FSP([x.shape for x in student], [x.shape for x in teacher])
    keep("fsp", sum(matched(student, teacher)), student, teacher)

    for case, size in {"equal": 4, "larger": 6}.items():
        student, teacher = states("as", 3, (3, size)), states("teacher", 3, (4, 4))
        learned = zoo["VID"].VIDLoss(3, 4, 4)
        seed(learned)
        params = {f"0/{n}/kernel": learned.regressor[2 * n].weight for n in range(3)}
        keep(f"vid_{case}", learned(*student, *teacher), student, teacher, params | {"0/variance": learned.log_scale})


def reviewkd(folder: Path) -> None:
    """Run its blocks and its loss. The loop over the blocks is restated here, since theirs needs CUDA."""
    sys.path.insert(0, str(folder / "CIFAR-100"))
    from model.reviewkd import ABF, hcl

    for case, (first, second, third) in {"equal": (8, 4, 2), "unlike": (6, 6, 3)}.items():
        student = states("as", 3, (3, 8), (4, 4), (5, 2))
        teacher = states("teacher", 3, (4, first), (5, second), (6, third))
        every, targets = [[*maps, maps[-1].mean((2, 3), keepdim=True)] for maps in (student, teacher)]
        blocks = torch.nn.ModuleList(
            ABF(x.shape[1], 5, target.shape[1], number < 3)
            for number, (x, target) in enumerate(zip(every, targets, strict=True))
        )
        seed(blocks)
        outs, handed_on = [], None
        for x, target, block in reversed(list(zip(every, targets, blocks, strict=True))):
            out, handed_on = block(x, handed_on, x.shape[-1], target.shape[-1])
            outs.insert(0, out)
        params = {}
        for number, block in enumerate(blocks):
            for name, (convolution, norm) in {"enter": block.conv1, "leave": block.conv2}.items():
                params[f"{number}/{name}/kernel"] = convolution.weight
                params[f"{number}/{name}/scale"], params[f"{number}/{name}/bias"] = norm.weight, norm.bias
            if block.att_conv is not None:
                params[f"{number}/gate/kernel"] = block.att_conv[0].weight
                params[f"{number}/gate/bias"] = block.att_conv[0].bias
        keep(f"review_{case}", hcl(outs, targets), student, teacher, params)


def semckd(folder: Path) -> None:
    """Run the regressors and the loss, with the assignment of the published code held constant."""
    torch.Tensor.cuda = lambda x: x  # the loss moves its table to a GPU
    util = load(folder / "models" / "util.py", "semckd_util")
    criterion = load(folder / "distiller_zoo" / "SemCKD.py", "semckd_loss").SemCKDLoss()
    student, teacher = states("as", 8, (2, 6), (3, 3)), states("teacher", 8, (2, 4), (3, 2))
    learned = util.SelfA(2, 2, 8, [2, 3], [2, 3])
    seed(learned)
    predicted, targets, assigned = learned(student, teacher)
    params = {}
    for i in range(2):
        for j in range(2):
            layers = getattr(learned, f"regressor{i}{j}").regressor
            for number, layer in enumerate((0, 3, 6)):
                params[f"regressor/{i}/{j}/{number}/kernel"] = layers[layer].weight
            for number, layer in enumerate((1, 4)):
                params[f"regressor/{i}/{j}/{number}/scale"] = layers[layer].weight
                params[f"regressor/{i}/{j}/{number}/bias"] = layers[layer].bias
    keep("semckd", criterion(predicted, targets, assigned.detach()), student, teacher, params)
    kept["semckd/assignment"] = assigned.detach().numpy()


if __name__ == "__main__":
    for run, folder in zip((repdistiller, semckd, reviewkd), map(Path, sys.argv[1:]), strict=True):
        run(folder)
    np.savez_compressed(HERE / "layer_losses.npz", **kept)
    print({name: float(x) for name, x in kept.items() if name.endswith("value")}, file=sys.stderr)
