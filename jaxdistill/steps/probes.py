"""Linear probes of a teacher's layers: what each of them says of the labels, whatever a student makes of it.

Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016 (arxiv.org/abs/1610.01644).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, Outputs, PyTree, Signals
from jaxdistill.losses.term import extent_mean, precise


def begun(said: Outputs, layers: Sequence[int]) -> PyTree:
    """A probe for each of these layers, of zeros: at first all say the same.

    Args:
        said: what the teacher returns.
        layers: by number, the embedding first.

    Raises:
        ValueError: the teacher has no such layer.
    """
    states, classes = said.hidden_states, said.dense().logits.shape[-1]
    if lost := [layer for layer in layers if not 0 <= layer < len(states) or states[layer] is None]:
        raise ValueError(f"the teacher returns no layers {lost} to probe; it has layers 0 to {len(states) - 1}")
    zeros = lambda width: {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    return tuple(zeros(states[layer].shape[-1]) for layer in layers)


def read(probes: PyTree, signals: Signals, layers: Sequence[int]) -> Float[Array, "layers *batch classes"]:
    """The logits that each probe reads in its layer of the first teacher: averaged over its extent, of square 1."""

    def each(probe, layer):
        state = precise(signals.teachers[0].hidden_states[layer])
        x = extent_mean(state, signals.batch, signals.mask.ndim, trailing=1)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        return by_rows(x @ probe["kernel"] + probe["bias"])

    return jnp.stack([each(*named) for named in zip(probes, layers, strict=True)])


def shares(fused: Signals, layers: Sequence[int]) -> Array:
    """What the gate gives to the path of each layer, `[layers, *batch]`.

    Raises:
        ValueError: the fusion weighs no paths, or another number of them.
    """
    routes = None if fused.teacher is None else fused.teacher.routes
    if routes is None or len(routes) != len(layers):
        raise ValueError(f"{len(layers)} layers are probed; routing needs fusion='gate(paths={len(layers)})'")
    return routes
