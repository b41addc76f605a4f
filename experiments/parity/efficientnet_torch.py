"""Record PyTorch's logits with the published weights: timm's network on three photographs.

    python experiments/parity/efficientnet_torch.py WEIGHTS.pth UNPACKED_SCIKIT_IMAGE   # needs torch and timm

Writes efficientnet.npz in this folder: logits `[3, 1000]` and the versions of torch and timm.
"""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from photographs import photographs  # noqa: E402  (this script runs without jaxdistill)


def main(weights: Path, folder: Path) -> None:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    published = torch.load(weights, weights_only=True)  # both list their tensors from the stem to the head
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    image = photographs(folder).astype(np.float32) / 127.5 - 1
    with torch.no_grad():
        logits = model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    versions = {module.__name__: module.__version__ for module in (torch, timm)}
    np.savez_compressed(HERE / "efficientnet.npz", logits=logits, versions=json.dumps(versions))
    print(logits.argmax(1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
