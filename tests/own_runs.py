"""Small runs of every model family on a user's files, for tests that use trained models."""

import json
from pathlib import Path

import numpy as np
import pytest
import runs
from corpora import WORDS, documents, sentences, written
from rich.console import Console

import jaxdistill
from jaxdistill import differ, main, make
from jaxdistill.data.datasets import open_records

QUIET = Console(quiet=True)
IMAGES = "table(path='{home}/images.npz', image='x', label='y')"
TEXTS = "table(path='{home}/texts.jsonl', text='words', label='kind')"
FAMILIES = {  # (model, data, tokens)
    "mlp": ("mlp(widths=(16,), classes={classes})", IMAGES, ""),
    "resnet": ("resnet(widths=(4, 8), blocks=1, classes=3)", IMAGES, ""),
    "resnet_imagenet": ("resnet_imagenet(widths=(8, 16), depths=(1, 1), classes=3, stem=8, channels=1)", IMAGES, ""),
    "efficientnet_lite": ("efficientnet_lite(stem=8, stages=((8, 2, 3, 2, 2),), top=16, classes=3)", IMAGES, ""),
    "vit": ("vit(patch=4, width=16, depth=1, heads=2, classes=3, image=8, channels=1)", IMAGES, ""),
    "dinov2": ("dinov2(patch=4, width=16, depth=1, heads=2, classes=3, image=8, channels=1, registers=1)", IMAGES, ""),
    "deit": ("deit(patch=4, width=16, depth=1, heads=2, classes=3, image=8, channels=1)", IMAGES, ""),
    "bert": ("bert(vocabulary={vocabulary}, width=16, depth=1, heads=2, ffn=24, classes=2)", TEXTS, "sentences"),
    "decoder": (
        "decoder(vocabulary={vocabulary}, width=16, depth=1, heads=2, kv_heads=1, head_size=8, ffn=24)",
        TEXTS.replace(", label='kind'", ""),
        "documents",
    ),
    "gpt2": (
        "gpt2(vocabulary={vocabulary}, width=16, depth=1, heads=2, positions=16)",
        TEXTS.replace(", label='kind'", ""),
        "documents",
    ),
    "modernbert": (
        "modernbert(vocabulary={vocabulary}, width=16, depth=2, heads=2, ffn=24, window=4, classes=2)",
        TEXTS,
        "sentences",
    ),
}
ROWS = 16  # rows of an evaluation batch


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Write files of images and of texts, and a tokenizer; yield their folder."""
    place = tmp_path_factory.mktemp("own")
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = np.clip(80 * labels[:, None, None, None] + draw.normal(0, 60, (120, 8, 8, 1)), 0, 255).astype(np.uint8)
    np.savez(place / "images.npz", x=images, y=labels)
    letters = [" ".join(draw.choice(WORDS[5:], 2 + n % 6)) for n in range(120)]
    rows = [{"words": text, "kind": ("early", "late")[text[0] > "c"]} for text in letters]
    (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written(place, WORDS)
    with pytest.MonkeyPatch.context() as patch, runs.compilation_cache(place / "programs"):
        patch.setenv("JAXDISTILL_DATA", str(place / "prepared"))
        yield place


def config_of(family: str, home: Path, **more):
    model, data, tokens = FAMILIES[family]
    tokenize = {"sentences": sentences(home, 8), "documents": documents(home, 8, ", pack=False")}
    teachers = {"big": {"model": model, "steps": 3}}
    plain = {
        "steps": 4,
        "batch_size": 16,
        "student": {"model": model},
        "teachers": teachers,
        "objective": {"kd": {}, "cross_entropy": {}},
        "data": {"name": data.format(home=home), "tokens": tokenize.get(tokens, "")},
        "evaluate": {"every": 2, "batch_size": ROWS, "layers": ()},
        "logging": {"tensorboard": False},
        "mesh": {"data": 1},
    }
    return make(**plain | more)


@pytest.fixture(scope="module")
def trained(home):
    """Return a function that gives the folder of a family's run, and trains it at the first call."""

    def run(family: str) -> Path:
        folder = home / "runs" / family
        if not (folder / "results.json").is_file():
            jaxdistill.distill(config_of(family, home), folder, QUIET)
        return folder

    return run


def test_records(family: str, home: Path) -> list[dict]:
    name = FAMILIES[family][1].format(home=home)
    records = open_records(name, "test", home / "prepared", "data", "test")
    columns = records.take(np.arange(len(records)))
    return [
        {field: column[row] for field, column in columns.items() if field != "label"} for row in range(len(records))
    ]


test_records.__test__ = False


def command(*words: object) -> int:
    return main.run(list(map(str, words)))


def unlabelled(home: Path, model: str, **more):
    config = config_of("bert", home, student={"model": model}, **more)
    return differ(config, data={"name": TEXTS.replace(", label='kind'", "").format(home=home)})
