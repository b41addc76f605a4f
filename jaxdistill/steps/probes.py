"""Linear probes: predict the labels from single layers of a teacher.

Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016 (arxiv.org/abs/1610.01644).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, Outputs, PyTree, Signals
from jaxdistill.losses.term import mean_over_positions, precise


def init_probes(outputs: Outputs, layers: Sequence[int]) -> PyTree:
    """Initialise a probe for each of the layers, with zeros: at first all predict the uniform distribution.

    Args:
        outputs: the teacher's outputs.
        layers: layer numbers; 0 is the embedding.

    Raises:
        ValueError: the teacher has no such layer.
    """
    states, classes = outputs.hidden_states, outputs.dense().logits.shape[-1]
    if missing := [layer for layer in layers if not 0 <= layer < len(states) or states[layer] is None]:
        raise ValueError(f"the teacher returns no layers {missing} to probe; it has layers 0 to {len(states) - 1}")
    zeros = lambda width: {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    return tuple(zeros(states[layer].shape[-1]) for layer in layers)


def probe_logits(probes: PyTree, signals: Signals, layers: Sequence[int]) -> Float[Array, "layers *batch classes"]:
    """Compute the logits of each probe from its layer of the first teacher.

    A hidden state is averaged over its positions and scaled to a mean square of 1 first.
    """

    def each(probe, layer):
        state = precise(signals.teachers[0].hidden_states[layer])
        x = mean_over_positions(state, signals.batch, signals.mask.ndim, trailing=1)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        return by_rows(x @ probe["kernel"] + probe["bias"])

    return jnp.stack([each(probe, layer) for probe, layer in zip(probes, layers, strict=True)])


def path_weights(fused: Signals, layers: Sequence[int]) -> Array:
    """Return the gate's weights of the paths, one path for each layer, `[layers, *batch]`.

    Raises:
        ValueError: the fusion has no path weights, or another number of them.
    """
    routes = None if fused.teacher is None else fused.teacher.routes
    if routes is None or len(routes) != len(layers):
        raise ValueError(f"{len(layers)} layers are probed; routing needs fusion='gate(paths={len(layers)})'")
    return routes
