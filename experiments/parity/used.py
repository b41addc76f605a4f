"""Train small models through the command, and keep their predictions for comparison with other libraries.

python -m experiments.parity.used FOLDER          # trains a classifier, an embedder and a vision model in FOLDER
python experiments/parity/used_torch.py FOLDER    # with torch, transformers, sentence-transformers: compares
"""

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console

import jaxdistill
from jaxdistill import differ, load_config
from jaxdistill.data.datasets import open_records
from jaxdistill.run import presets

ROWS = 64  # test records that are compared


def train(folder: Path, name: str, config) -> None:
    """Train a model, and write its predictions for the first test records beside it."""
    run = folder / name
    jaxdistill.distill(config, run, Console(quiet=True))
    records = open_records(config.data.name, config.data.test, Path("~/.cache/jaxdistill/data"), "data", "test")
    columns = records.take(np.arange(min(ROWS, len(records))))
    predictor = jaxdistill.load(run)
    field = "text" if predictor.text_fields else "image"
    found = predictor.predict(list(columns[field]))
    about = {"inputs": columns[field].tolist(), "labels": found.labels}
    arrays = {key: getattr(found, key) for key in ("probabilities", "embeddings") if getattr(found, key) is not None}
    (run / "predictions.json").write_text(
        json.dumps(about | {key: value.tolist() for key, value in arrays.items()}, default=lambda x: x.decode())
    )
    print(f"{run}: {len(columns[field])} predictions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    texts = {"name": "reuters/r8", "train": "train[:5%]"}
    small = {"steps": 30, "evaluate": {"every": 30, "batch_size": 128, "layers": ()}}
    classifier = load_config(presets.find("text"))
    teachers = {"minilm": {**classifier.teachers.minilm.to_dict(), "steps": 30}}
    train(folder, "classifier", differ(classifier, data=texts, teachers=teachers, **small))
    train(folder, "embedder", differ(load_config(presets.find("embedding")), data=texts, **small))
    vit = "vit(patch=8, width=32, depth=2, heads=2, classes={classes}, image=32, channels=3, pool='token')"
    vision = jaxdistill.make(
        steps=30,
        student={"model": vit},
        teachers={"vit": {"model": vit, "steps": 30, "augment": ("resize(size=32)",)}},
        objective={"kd": {}, "cross_entropy": {}},
        data={"name": "emoji", "augment": ("resize(size=32)",)},
    )
    train(folder, "vision", vision)


if __name__ == "__main__":
    main()
