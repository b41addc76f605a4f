"""Run the published code of losses of logits on seeded logits in float64, and write values and gradients.

In an environment of its own with torch (never a dependency of ours), and a folder that holds a checkout of each
repository under its own name: distillm, distillm-2, TAID, logit-standardization-KD, llm-recipes, trl:

    python tests/golden/logits_reference.py FOLDER

Only the needed definitions of each file are executed, since its imports may not be installed here. Where they name
float32 and a GPU, float64 and the CPU are put in their place.
"""

import ast
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

HERE = {"float32": "float64", 'device="cuda", ': "", 'device="cuda"': 'device="cpu"'}
draw = np.random.Generator(np.random.Philox(4))
normal = lambda *shape: 2 * torch.tensor(draw.standard_normal(shape))
given = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "math": math, "Any": Any, "GOLDConfig": Any}


def defined(file: Path, *names: str, **more: Any) -> SimpleNamespace:
    """Execute the functions and classes of these names, at any level of a file, and return them."""
    text = file.read_text()
    for theirs, ours in HERE.items():
        text = text.replace(theirs, ours)
    space = {**given, "Tuple": tuple, "LightningModule": Any, "DistilLoss": torch.nn.Module, **more}
    wanted = [node for node in ast.walk(ast.parse(text)) if getattr(node, "name", None) in names]
    for node in wanted:
        node.decorator_list = []
    exec(compile(ast.Module(wanted, []), file.name, "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in names})


def told(value: Any, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the inputs, the value and its gradient with respect to the student."""
    return {**inputs, "value": value, "grad": torch.autograd.grad(value, inputs["student"])[0]}


def pair(*shape: int) -> dict[str, torch.Tensor]:
    return {"student": normal(*shape).requires_grad_(), "teacher": normal(*shape)}


def divergences(root: Path) -> dict[str, Any]:
    """Record divergences as the mean over the tokens of 3 sequences of 5 tokens, some of them padding."""
    first = defined(root / "distillm/distillm/losses.py", "reverse_kl", "skewed_forward_kl", "skewed_reverse_kl")
    second = defined(root / "distillm-2/src/distillm_trainer.py", "get_batch_logps")
    label = torch.tensor(draw.integers(0, 7, (3, 5)))
    label[0, 3:] = label[2, :2] = -100
    found = {}
    for name in ("reverse_kl", "skewed_forward_kl", "skewed_reverse_kl"):
        seen = pair(3, 5, 7)
        value = getattr(first, name)(seen["student"], seen["teacher"], {"label": label})
        found[name] = {**told(value, **seen), "label": label}
    for number, name in ((2, "skewed_forward_kl_2"), (3, "skewed_reverse_kl_2")):
        seen = pair(3, 5, 7)
        sums = second.get_batch_logps(
            *seen.values(), label.clone(), is_encoder_decoder=True, loss_type="distillm_v2", base_alpha_2=0.2
        )
        value = sums[number].sum() / (label != -100).sum()
        found[name] = {**told(value, **seen), "label": label}
    return found


def standardized(root: Path) -> dict[str, Any]:
    folder = root / "logit-standardization-KD/mdistiller/distillers"
    kd = defined(folder / "KD.py", "normalize", "kd_loss").kd_loss
    parts = ("normalize", "dkd_loss", "_get_gt_mask", "_get_other_mask", "cat_mask")
    dkd = defined(folder / "DKD.py", *parts).dkd_loss
    label = torch.tensor(draw.integers(0, 7, 6))
    seen, other = pair(6, 7), pair(6, 7)
    return {
        "standardized_kd": told(kd(*seen.values(), 2.0, True), **seen),
        "standardized_dkd": {**told(dkd(*other.values(), label, 1.0, 8.0, 2.0, True), **other), "label": label},
    }


def taid(root: Path) -> dict[str, Any]:
    """Record four steps; after the third, the student is so good that the coefficient rises above its floor."""
    folder = root / "TAID/src/distil_losses"
    forward = defined(folder / "fkl.py", "forward_kl", Optional=__import__("typing").Optional)
    loss = defined(folder / "taid.py", "TAID", forward_kl=forward.forward_kl).TAID(alpha=0.3)
    found = {}
    for step, size in enumerate((1.0, 1.0, 0.3, 1.0)):
        seen = pair(2, 3, 5)
        seen = {name: (size * x.detach()).requires_grad_() for name, x in seen.items()}
        before = loss.t.clone()
        trainer = SimpleNamespace(global_step=step, estimated_stepping_batches=20)
        module = SimpleNamespace(trainer=trainer)
        value = loss(module, *seen.values(), torch.ones(2, 3))["distil_loss"]
        state = {"before": before, "after": loss.t.clone(), "momentum": loss.momentum.clone()}
        found[f"taid/{step}"] = {**told(value, **seen), **state}
    return found


def uld(root: Path) -> dict[str, Any]:
    """Record two answers after prompts, by the authors' first code, with vocabularies of 6 and 9 tokens."""
    repository = root / "llm-recipes/models/distillation_model.py"
    loss = defined(repository, "DistillationLoss").DistillationLoss(crossentropy_weight=0)
    student, teacher = normal(2, 5, 6).requires_grad_(), normal(2, 5, 9)
    label = torch.tensor([[-100, 3, 4, 1, -100], [-100, 2, 2, 0, -100]])
    said = lambda logits: SimpleNamespace(logits=logits.clone(), loss=0.0)
    value = loss(said(student), said(teacher), label, label)[2]
    return {"uld": {**told(value, student=student, teacher=teacher), "label": label}}


def gold(root: Path) -> dict[str, Any]:
    """Record one text after a prompt of one token, with the merging of tokens that TRL calls bayesian.

    `gold_merged`: spans of 1:2, 1:1, 2:2 and 1:1 tokens, all probabilities sorted. `gold_shared`: one token each,
    the 4 shared ones of 7 and 9 compared directly.
    """
    file = root / "trl/trl/experimental/gold/gold_trainer.py"
    jsd = defined(file, "generalized_jsd_loss")
    trainer = SimpleNamespace(generalized_jsd_loss=jsd.generalized_jsd_loss)
    make = defined(file, "ULDLoss", GOLDTrainer=trainer).ULDLoss
    words = lambda vocabulary: SimpleNamespace(get_vocab=lambda: vocabulary)
    shared = {"w": (5, 0), "x": (0, 8), "y": (3, 2), "z": (2, 5)}
    student_words = {f"s{n}": n for n in (1, 4, 6)} | {word: n for word, (n, _) in shared.items()}
    teacher_words = {f"t{n}": n for n in (1, 3, 4, 6, 7)} | {word: n for word, (_, n) in shared.items()}
    found = {}
    for name, hybrid, student_ends, teacher_ends in (
        ("gold_merged", False, (2, 3, 5, 7, 8), (1, 2, 3, 6, 7, 8)),
        ("gold_shared", True, (2, 3, 5, 7), (2, 3, 5, 7)),
    ):
        config = SimpleNamespace(
            uld_crossentropy_weight=0.0,
            uld_distillation_weight=1.0,
            uld_student_temperature=1.5,
            uld_teacher_temperature=1.5,
            uld_skip_student_eos=False,
            uld_skip_teacher_eos=False,
            use_extended_uld=True,
            uld_token_merge_strategy="bayesian",
            uld_use_hybrid_loss=hybrid,
            uld_hybrid_matched_weight=0.7,
            uld_hybrid_unmatched_weight=0.4,
            beta=0.5,
        )
        loss = make(config, words(student_words), words(teacher_words))
        sizes = 1 + len(student_ends), 1 + len(teacher_ends)
        student, teacher = normal(1, sizes[0], 7).requires_grad_(), normal(1, sizes[1], 9)
        ids = [torch.tensor(draw.integers(0, c, (1, size))) for c, size in zip((7, 9), sizes, strict=True)]
        labels = [x.clone() for x in ids]
        for label in labels:
            label[0, 0] = -100
        offsets = [torch.tensor([[(0, 0), *((0, end) for end in ends)]]) for ends in (student_ends, teacher_ends)]
        value = loss(student, teacher, *labels, *ids, *offsets)
        more = {"student_ids": ids[0], "teacher_ids": ids[1], "shared": torch.tensor(list(shared.values()))}
        found[name] = {**told(value, student=student, teacher=teacher), **more}
    return found


def main() -> None:
    torch.set_default_dtype(torch.float64)
    root = Path(sys.argv[1])
    found: dict[str, Any] = {}
    for part in (divergences, standardized, taid, uld, gold):
        found |= part(root)
    arrays = {f"{name}/{key}": x.detach().numpy() for name, said in found.items() for key, x in said.items()}
    np.savez_compressed(Path(__file__).with_name("logits.npz"), **arrays)
    for name, said in found.items():
        print(name, said["value"].item())


if __name__ == "__main__":
    main()
