"""Load the models of used.py as a user of transformers and sentence-transformers would, and compare their answers.

python experiments/parity/used_torch.py FOLDER     # exits with 1 if an answer differs by more than 1e-5
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def classified(folder: Path, said: dict) -> float:
    """Compare the probabilities and the names of classes of a pipeline."""
    task = "text-classification" if isinstance(said["inputs"][0], str) else "image-classification"
    inputs, processor = said["inputs"], {}
    if task == "image-classification":
        from PIL import Image

        inputs = [Image.fromarray(np.asarray(x, np.uint8)) for x in inputs]
        # the default, torchvision's resize, rounds pixels in another way: probabilities then differ by 2e-5
        processor = {"image_processor": transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)}
    pipe = transformers.pipeline(task, str(folder), device="cpu", **processor)
    more = {"truncation": True, "max_length": 48} if task == "text-classification" else {}
    found = pipe(inputs, top_k=pipe.model.config.num_labels, **more)
    names = [pipe.model.config.id2label[number] for number in range(pipe.model.config.num_labels)]
    theirs = [[{x["label"]: x["score"] for x in row}[name] for name in names] for row in found]
    assert [max(row, key=lambda x: x["score"])["label"] for row in found] == said["labels"]
    return float(np.abs(np.asarray(theirs) - said["probabilities"]).max())


def embedded(folder: Path, said: dict) -> float:
    """Compare the embeddings of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return float(np.abs(model.encode(said["inputs"]) - said["embeddings"]).max())


def main(folder: Path) -> int:
    torch.set_grad_enabled(False)
    worst = 0.0
    for file in sorted(folder.glob("*/predictions.json")):
        said = json.loads(file.read_text())
        compare = classified if said["labels"] else embedded
        error = compare(file.parent / "student" / "hub", said)
        worst = max(worst, error)
        print(f"{file.parent.name:12}{error:.1e} in {len(said['inputs'])} answers ({compare.__name__})")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}: largest difference {worst:.1e}")
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
