"""Load the folders of written.py with transformers under PyTorch, and print how far its outputs are from ours.

python experiments/parity/written_torch.py FOLDER     # needs torch and transformers; exits with 1 above 1e-5
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def run_torch(folder: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return PyTorch's logits and hidden states in our layout."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model, report = kind.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    unread = ("pooler.", "num_batches_tracked")  # not exported: embeddings use no pooler, a fixed momentum no count
    report["missing_keys"] = {n for n in report["missing_keys"] if not any(word in n for word in unread)}
    problems = {name: outputs for name, outputs in report.items() if outputs}
    assert not problems, f"{folder.name}: {problems}"
    torch_inputs = {name: torch.from_numpy(x.astype(np.int64)) for name, x in inputs.items() if name != "image"}
    if "image" in inputs:
        torch_inputs["pixel_values"] = torch.from_numpy(inputs["image"].transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        out = model.eval()(**torch_inputs, output_hidden_states=True)
        states = out.get("hidden_states") or ()
        if "logits_per_image" in out:
            states = model.vision_model(torch_inputs["pixel_values"], output_hidden_states=True).hidden_states
    logits = out.get("logits", out.get("logits_per_image"))
    if logits is None:  # an encoder without a head: its pooled tokens, normalised to length 1
        real = torch_inputs["attention_mask"][:, :, None].float()
        mean = (out.last_hidden_state * real).sum(1) / real.sum(1).clamp(min=1e-9)
        logits = torch.nn.functional.normalize(mean)
    outputs = {"logits": logits}
    outputs |= {f"hidden/{n}": x.permute(0, 2, 3, 1) if x.ndim == 4 else x for n, x in enumerate(states)}
    return {name: x.numpy() for name, x in outputs.items()}


def main(folder: Path) -> int:
    worst = 0.0
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            part = lambda kind: {n.removeprefix(kind): file[n] for n in file.files if n.startswith(kind)}
            inputs, ours = part("in/"), part("out/")
        theirs = run_torch(folder / path.stem, inputs)
        assert set(ours) == set(theirs), (path.stem, sorted(set(ours) ^ set(theirs)))
        real = inputs.get("attention_mask", np.ones(1)).astype(bool)
        errors = {}
        for name, x in theirs.items():
            same, mine = x, ours[name]
            if x.ndim == 3 and x.shape[:2] == real.shape:  # ignore padded positions
                same, mine = x[real], mine[real]
            errors[name] = float(np.abs(same - mine).max() / max(1.0, np.abs(same).max()))
        worst = max(worst, *errors.values())
        print(f"{path.stem:24}{errors['logits']:.1e} logits, {max(errors.values()):.1e} of {len(errors)} outputs")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}: largest difference {worst:.1e}")
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
