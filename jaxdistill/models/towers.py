"""Join two networks of any families to two towers: one embeds images, the other texts, both into the same space.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arxiv.org/abs/2103.00020);
Zhai et al., LiT: Zero-Shot Transfer with Locked-image text Tuning, 2022 (arxiv.org/abs/2111.07991), for locked towers.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdistill.core.collectives import by_rows, gather
from jaxdistill.core.interfaces import Model, Pretrained
from jaxdistill.core.registry import models
from jaxdistill.core.types import NO_CANDIDATE, Array, Key, Outputs, Params, PyTree, RowsLike, State, Variables

Tower = Literal["images", "texts"]


@models.register
def towers(
    images: Model,
    texts: Model,
    width: int,
    scale: float = 1 / 0.07,
    bias: float | None = None,
    locked: tuple[Tower, ...] = (),
) -> Model:
    """Build a two-tower model: an image encoder and a text encoder, with linear projections into a common space.

    Each tower (encoder) is any network that returns an embedding. The logits, `[images, texts]`, are `exp(s) * i @ t.T
    + b` over all images and texts of the global batch, with the projected embeddings i and t of unit norm, a learned s,
    and a learned b if `bias` is set. The number of logits changes with the batch size, so they are not logits of
    classes: losses of pairs (`contrastive`, `affinity`, ...) read the embeddings and the scale instead. The hidden
    states and attentions are those of the image tower. Both towers read the whole batch, so that an image tower reads
    the field `image`, and a text tower `input_ids`.

    Args:
        images: the network that embeds images, such as `resnet(widths=(16, 32), classes=1)`; its head is not used.
        texts: the network that embeds texts, such as `pretrained('FOLDER')`.
        width: width of the common space.
        scale: initial value of exp(s), which is positive.
        bias: initial value of b, such as -10 for the loss `sigmoid`; None means no bias.
        locked: towers ("images", "texts") that are not trained; their projections are trained all the same.

    Raises:
        ValueError: `scale` is not positive; or, when the model is initialised, a tower returns no embedding.
    """
    if scale <= 0:
        raise ValueError(f"scale={scale} must be positive")
    parts = {"images": images, "texts": texts}

    def init(key: Key, batch: RowsLike) -> tuple[Params, State]:
        params: dict[str, Array] = {"logit_scale": jnp.asarray(math.log(scale), jnp.float32)}
        params |= {} if bias is None else {"logit_bias": jnp.asarray(bias, jnp.float32)}
        state: dict[str, Array] = {}
        for number, (name, tower) in enumerate(parts.items()):
            tower_key, projection_key = jax.random.split(jax.random.fold_in(key, number))
            tower_params, tower_state = tower.init(tower_key, batch)
            out = jax.eval_shape(
                lambda p, s, b, k, t=tower: t.apply(p, s, b, train=False, key=k)[0],
                *(tower_params, tower_state, dict(batch), tower_key),
            )
            if out.embedding is None:
                raise ValueError(f"{name}: the network returns no embedding; choose another one")
            shape = (out.embedding.shape[-1], width)
            params |= _prefixed(name, tower_params)
            params[f"{name}_projection/kernel"] = jax.random.normal(projection_key, shape) * shape[0] ** -0.5
            state |= _prefixed(name, tower_state)
        return params, state

    def apply(params: Params, state: State, batch: RowsLike, *, train: bool, key: Key) -> tuple[Outputs, State]:
        outputs_by_tower: dict[str, Outputs] = {}
        new_state: dict[str, Array] = {}
        for (name, tower), tower_key in zip(parts.items(), jax.random.split(key), strict=True):
            learns, tower_params = name not in locked, _part(name, params)
            tower_params = tower_params if learns else jax.lax.stop_gradient(tower_params)
            out, kept = tower.apply(tower_params, _part(name, state), batch, train=train and learns, key=tower_key)
            outputs_by_tower[name], new_state = out, new_state | _prefixed(name, kept)
        project = lambda name: by_rows(outputs_by_tower[name].embedding @ params[f"{name}_projection/kernel"])
        scale, bias = params["logit_scale"], params.get("logit_bias")
        pairs = pair_outputs(project("images"), project("texts"), scale, bias, batch["mask"])
        shown = outputs_by_tower["images"]
        return replace(pairs, hidden_states=shown.hidden_states, attentions=shown.attentions), new_state

    def load(abstract: Variables) -> Pretrained:
        loaded = {
            name: tower.load(Variables(_part(name, abstract.params), _part(name, abstract.state)))
            for name, tower in parts.items()
            if tower.load
        }
        unloaded = (
            n for n in (*abstract.params, *abstract.state) if not n.startswith(tuple(f"{name}/" for name in loaded))
        )
        fresh = (f"{name}/{each}" for name, checkpoint in loaded.items() for each in checkpoint.fresh)

        def read() -> Variables:
            params: dict[str, Any] = {}
            state: dict[str, Any] = {}
            for name, checkpoint in loaded.items():
                values = checkpoint.read()
                params |= _prefixed(name, values.params)
                state |= _prefixed(name, values.state)
            return Variables(params, state)

        return Pretrained((*unloaded, *fresh), read)

    return Model(init, apply, load if images.load or texts.load else None, tuple(f"{name}/" for name in locked))


def pair_outputs(images: Array, texts: Array, log_scale: Array, bias: Array | None, mask: Array) -> Outputs:
    """Compute the `Outputs` of a two-tower model: unit embeddings, scale, and logits of all images with all texts.

    Args:
        images, texts: embeddings of any norm, `[batch, width]`.
        log_scale: logarithm of the factor of the cosine similarities, one number.
        bias: number that is added to every logit; None means no bias.
        mask: 0 for rows that are padding, `[batch]`; their texts have the logit `NO_CANDIDATE`.
    """
    image, text = _unit(images), _unit(texts)
    scale = jnp.exp(log_scale.astype(jnp.float32))
    logits = scale * by_rows(image @ gather(text).T)
    if bias is not None:
        logits = logits + bias
    of_rows = lambda x: by_rows(jnp.broadcast_to(jnp.reshape(x, ()), image.shape[:1]))
    logits = by_rows(jnp.where(gather(mask) > 0, logits, NO_CANDIDATE))
    cast = lambda x: x.astype(images.dtype)
    return Outputs(
        cast(logits),
        embedding=cast(image),
        text_embedding=cast(text),
        scale=of_rows(scale),
        bias=None if bias is None else of_rows(bias),
    )


def _unit(x: Array) -> Array:
    """Scale vectors, `[batch, width]`, to unit norm in float32."""
    x = x.astype(jnp.float32)
    return by_rows(x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24)))


def _prefixed(tower: str, arrays: Mapping[str, PyTree]) -> dict[str, PyTree]:
    return {f"{tower}/{name}": value for name, value in arrays.items()}


def _part(tower: str, arrays: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Return the arrays of one tower (encoder) as a dict by name, without the prefix `<tower>/` of the names."""
    start = f"{tower}/"
    return {name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)}
