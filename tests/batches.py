"""Random batches and signals, as inputs of losses, fusions, models and steps in tests."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from jaxdistill.core.types import Array, AttentionHeads, Outputs, Signals


def single(x: Any) -> Array:
    """Convert numbers to float32 in numpy, since JAX would compile a conversion for each shape."""
    return jnp.asarray(np.asarray(x, np.float32))


def drawn(shapes: Any, seed: int) -> Any:
    """Draw values for a model's variables of these shapes without compiling its init; those of its state are near 1."""
    draw = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: draw.normal(0, 0.3, x.shape).astype(x.dtype), shapes.params)
    return shapes._replace(
        params=params, state=jax.tree.map(lambda x: draw.uniform(0.5, 1.5, x.shape).astype(x.dtype), shapes.state)
    )


POSITIONS = 3  # tokens of a text; the first 2 or 3 are not padding


def outputs(rng: np.random.Generator, batch: tuple[int, ...], extent, classes: int, width: int, depth: int) -> Outputs:
    """Draw all outputs that a model may return; in numpy, since `jnp` would compile its functions for each shape."""
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    length = batch[1] if len(batch) == 2 else POSITIONS
    heads = lambda: AttentionHeads(*draw(3, batch[0], length, 2, 4), softmax(draw(batch[0], 2, length, length), -1))
    attentions = tuple(heads() for _ in range(depth))
    hidden = tuple(draw(*batch, *extent, width) for _ in range(depth + 1))
    said = Outputs(
        2 * draw(*batch, classes),
        hidden,
        attentions,
        draw(batch[0], width),
        input_gradients=draw(batch[0], 7),
        state_gradients=tuple(draw(*x.shape) for x in hidden),
    )
    text, factor = np.roll(said.embedding, 1, axis=1) + 0.3 * said.embedding[::-1], np.ones(batch[0], np.float32)
    said = replace(said, text_embedding=text, scale=3 * factor, bias=-2 * factor)  # a draw would change later ones
    return jax.tree.map(jnp.asarray, said)


def signals(
    seed: int = 0,
    batch: tuple[int, ...] = (6,),
    extent: tuple[int, ...] = (),
    classes: int = 5,
    width: int = 4,
    depths: Iterable[int] = (4,),
) -> Signals:
    """Draw the signals of a term at random: a student of 2 layers and one teacher for each of `depths`."""
    rng = np.random.default_rng(seed)
    kernels = lambda: {name: single(rng.normal(size=(3, 4))) for name in ("a/kernel", "b/kernel")}
    teachers = tuple(outputs(rng, batch, extent, classes, width, depth) for depth in depths)
    lengths = 2 + np.arange(batch[0])[:, None] % 2
    text = {"attention_mask": jnp.asarray((np.arange(POSITIONS) < lengths).astype(np.int32))}
    return Signals(
        student=outputs(rng, batch, extent, classes, width, 2),
        teachers=teachers,
        teacher=None,
        batch={
            "label": jnp.asarray(rng.integers(0, classes, batch).astype(np.int32)),
            "label_probs": single(rng.dirichlet(np.ones(classes), batch)),
            **(text if len(batch) == 1 else {}),
            "index": jnp.asarray(np.arange(batch[0], dtype=np.int32)),
        },
        mask=single(np.ones(batch)),
        step=jnp.asarray(50, jnp.int32),
        temperature=1.0,
        params={
            "student": kernels() | {"a/bias": single(np.ones(4)), "head/kernel": single(rng.normal(size=(4, classes)))},
            "teachers": tuple(kernels() for _ in teachers),
        },
    )


def taught(seen: Signals) -> Signals:
    """Return the signals with the outputs and kernels of the first teacher as those of the student."""
    params = seen.params | {"student": seen.params["student"] | seen.params["teachers"][0]}
    return replace(seen, student=seen.teachers[0], params=params)


def at_rows(seen: Signals, chosen: Array) -> Signals:
    """Return the signals of these rows only, in this order."""
    take = lambda tree: jax.tree.map(lambda x: np.asarray(x)[np.asarray(chosen)], tree)
    by_rows = {name: take(getattr(seen, name)) for name in ("student", "teachers", "batch", "mask")}
    return replace(seen, **by_rows)


def at_nodes(nodes, seed: int = 0) -> Signals:
    """Draw signals of a batch whose field `label` holds these nodes of a graph."""
    seen = signals(seed, batch=(len(nodes),), classes=max(5, *nodes) + 1)
    return replace(seen, batch=seen.batch | {"label": np.asarray(nodes, np.int32)})


def drawn_logits(seed: int, *shape: int) -> tuple[Any, Any]:
    student, teacher = np.float32(2 * np.random.default_rng(seed).normal(size=(2, *shape)))
    return student, teacher


def images(rows: int = 8, size: int = 8, classes: int = 5, seed: int = 0) -> dict[str, Array]:
    """Draw a batch of images, each labelled by a linear classifier; the last quarter of the rows is padding."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, size, size, 1))
    label = (image.reshape(rows, -1) @ rng.normal(size=(size * size, classes))).argmax(-1)
    mask = np.arange(rows) < rows - rows // 4
    return {
        "image": single(image),
        "label": jnp.asarray(label.astype(np.int32)),
        "mask": single(mask),
    }


def texts(rows: int = 8, length: int = 6, classes: int = 5, seed: int = 0) -> dict[str, Array]:
    """Draw a batch of sentences of uneven lengths with token ids below 13; the last quarter of the rows is padding."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, length + 1, rows)
    return {
        "input_ids": jnp.asarray(rng.integers(0, 13, (rows, length)).astype(np.int32)),
        "attention_mask": jnp.asarray((np.arange(length) < lengths[:, None]).astype(np.int32)),
        "label": jnp.asarray(rng.integers(0, classes, rows).astype(np.int32)),
        "mask": single(np.arange(rows) < rows - rows // 4),
    }


def tokens(rows: int = 8, length: int = 6, classes: int = 5, seed: int = 0) -> dict[str, Array]:
    """Draw texts in which most tokens determine the next one, their label; the last quarter of the rows is padding."""
    rng = np.random.default_rng(seed)
    ids, drawn = rng.integers(0, classes, (2, rows, length + 1))
    for place in range(length):
        ids[:, place + 1] = np.where(drawn[:, place] > 0, (ids[:, place] + 1) % classes, ids[:, place + 1])
    lengths = np.where(np.arange(rows) < rows - rows // 4, rng.integers(2, length + 1, rows), 0)
    return {
        "input_ids": jnp.asarray(ids[:, :-1].astype(np.int32)),
        "label": jnp.asarray(ids[:, 1:].astype(np.int32)),
        "mask": single(np.arange(length) < lengths[:, None]),
    }


def clicks(rows: int = 8, classes: int = 5, seed: int = 0) -> dict[str, Array]:
    """Draw a batch of records with 3 of 13 categories each; the last quarter of the rows is padding."""
    rng = np.random.default_rng(seed)
    return {
        "categories": jnp.asarray(rng.integers(0, 13, (rows, 3)).astype(np.int32)),
        "label": jnp.asarray(rng.integers(0, classes, rows).astype(np.int32)),
        "mask": single(np.arange(rows) < rows - rows // 4),
    }


def pairs(rows: int = 8, classes: int = 5, seed: int = 0) -> dict[str, Array]:
    """Draw a batch of images with a sentence each, and with other sentences in the fields `teacher/...`."""
    other = {f"teacher/{name}": x for name, x in texts(rows, classes=classes, seed=seed + 1).items()}
    return other | texts(rows, classes=classes, seed=seed) | images(rows, classes=classes, seed=seed)


BATCHES = {"image": images, "text": texts, "tokens": tokens, "pairs": pairs, "clicks": clicks}
