"""Models that also return gradients of themselves, for terms that match derivatives: from Model to Model.

All by vjp, one forward pass and a backward pass for each kind of gradient: the Jacobian of classes times inputs is
never formed. A term says in its `needs` what it wants, and student and living teachers are wrapped; a cached teacher
has no gradients. Two rows meet where a model normalises by its batch: a student's gradients then hold what a row's
input does to the others' logits too, as automatic differentiation of the whole batch means it everywhere. The rounding
is that of the model's dtype, as in any backward pass: bfloat16 has the range of float32, so that nothing vanishes or
overflows, and terms raise what they compare.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows, row_keys
from jaxdistill.core.jaxpr import mentions
from jaxdistill.core.types import Array, Model, Outputs
from jaxdistill.losses.task.cross_entropy import softmax_cross_entropy
from jaxdistill.models.combinators import microbatched
from jaxdistill.models.layers import pixels

NEEDED = frozenset({"input_gradients", "state_gradients"})
DIRECTION = 0x6A61636F  # what the direction is keyed by: other draws of a step are not disturbed

Places = Mapping[str, Array]  # fields of a batch, in which is differentiated
Read = Callable[[Places], tuple[Array, Any]]


def with_needed(model: Model, needs: frozenset[str], pieces: int = 1) -> Model:
    """The model with all gradients that terms need, run through a batch in `pieces`, see `microbatched`.

    `input_gradients`: for each row `J^T v`, J being the logits' Jacobian in its input and v a random direction, uniform
    on the unit sphere over the classes. There is one for each row (token) and step, the same for every model that is
    called with the same key; rows that do not count have none. The input is `image`, as numbers from -1 to 1 (so that a
    module of your own takes it through `pixels`, or reads such numbers); of a text it is the embedding.

    `state_gradients`: for each hidden state, the gradient of the row's own cross-entropy with its `label`. The loss is
    summed and not averaged, so that a row's gradient does not depend on the batch; rows that do not count have none.

    Args:
        model: without pieces. Each piece takes its own gradients, or their backward pass would keep what pieces save.
        needs: what terms need; what is no gradient is none of our business.
        pieces: in how many a batch is cut.
    """
    wanted = needs & NEEDED
    own = _differentiated(model, wanted) if wanted else model
    own = microbatched(own, pieces) if pieces > 1 else own
    return _directed(own) if "input_gradients" in wanted else own


def _directed(model: Model) -> Model:
    """Gives every row a key for its direction before the batch is cut: the pieces draw what the whole would draw."""

    def apply(params, state, batch, *, train, key):
        keys = row_keys(jax.random.fold_in(key, DIRECTION), batch["mask"].shape[0])
        return model.apply(params, state, {**batch, "direction": keys}, train=train, key=key)

    return model._replace(apply=apply)


def _differentiated(model: Model, wanted: frozenset[str]) -> Model:
    def apply(params, state, batch, *, train, key):
        rows = {name: x for name, x in batch.items() if name != "direction"}

        def read(given: Places) -> tuple[Array, Any]:
            out, new_state = model.apply(params, state, {**rows, **given}, train=train, key=key)
            return _logits(out), (out, new_state)

        source, places = _places(read, rows, wanted)
        logits, backward, (out, state) = jax.vjp(read, places, has_aux=True)
        if "input_gradients" in wanted:
            (found,) = backward(_directions(batch["direction"], logits, rows["mask"]))
            out = replace(out, input_gradients=found[source])
        if "state_gradients" in wanted:
            (found,) = backward(_loss_slopes(logits, rows))
            out = replace(out, state_gradients=tuple(found[_nudge(n)] for n in range(len(out.hidden_states))))
        return out, state

    return model._replace(apply=apply)


def _places(read: Read, rows: Mapping[str, Array], wanted: frozenset[str]) -> tuple[str, dict[str, Array]]:
    """Which field is the input, and the fields in which is differentiated.

    Raises:
        ValueError: the model's logits do not depend on one of them: its gradients would silently be zero.
    """
    states = jax.eval_shape(read, {})[1][0].hidden_states
    nudges = {_nudge(n): jnp.zeros(x.shape, jnp.float32) for n, x in enumerate(states)}
    places, source = dict(nudges) if "state_gradients" in wanted else {}, ""
    if "input_gradients" in wanted:
        image = {"image": pixels(rows["image"], jnp.dtype("float32"))} if "image" in rows else {}
        source = "image" if image and not _unread(read, image) else _nudge(0)
        if source not in image | nudges:
            raise ValueError("gradients of the input are those of an image or an embedding, and the model has neither")
        places[source] = (image | nudges)[source]
    if unread := _unread(read, places):
        cure = "pass each hidden state through jaxdistill.nudged, in the order in which they are returned"
        raise ValueError(f"the model reads no {', '.join(unread)}, so that its hidden states have no gradient; {cure}")
    return source, places


def _unread(read: Read, places: Places) -> list[str]:
    """The places that the model's program does not mention."""
    (mentioned,) = mentions(lambda given: read(given)[0], dict(places))
    return [name for name in sorted(places) if not mentioned[name]]


def _nudge(layer: int) -> str:
    return f"nudge/{layer}"


def _logits(out: Outputs) -> Array:
    logits: Any = out.dense().logits
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _directions(keys: Array, logits: Array, mask: Array) -> Array:
    drawn = by_rows(jax.vmap(lambda key: jax.random.normal(key, logits.shape[1:], logits.dtype))(keys))
    counts = mask.reshape(mask.shape + (1,) * (logits.ndim - mask.ndim)) != 0
    return jnp.where(counts, drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True), 0.0)


def _loss_slopes(logits: Array, rows: Mapping[str, Array]) -> Array:
    """The gradient of each row's own cross-entropy in its logits; 0 of rows that do not count."""
    if "label" not in rows:
        raise ValueError(f"gradients of the task loss need the field label; the batch has {', '.join(sorted(rows))}")
    values, pull = jax.vjp(lambda logits: softmax_cross_entropy(logits, rows["label"]), logits)
    # the loss of a label that is no class is NaN, and its gradient would not be
    slopes = jnp.where(jnp.isnan(values)[..., None], jnp.nan, pull(jnp.ones_like(values))[0])
    return jnp.where(rows["mask"][..., None] != 0, slopes, 0.0)
