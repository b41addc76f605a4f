"""Linear probes: predict the labels from single layers of a teacher.

Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016 (arxiv.org/abs/1610.01644).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxdistill.core.collectives import by_rows
from jaxdistill.core.types import Array, Outputs, PyTree, Signals
from jaxdistill.losses.term import mean_over_positions, precise


def init_probes(outputs: Outputs, layers: Sequence[int]) -> PyTree:
    """Initialise a linear classifier (probe) for each of the given teacher layers.

    The result is a tuple of `{"kernel": [width, classes], "bias": [classes]}`, one dict for each layer. All values are
    zeros, so at first each probe predicts the uniform distribution.

    Args:
        outputs: the teacher's outputs; the shapes of its hidden states and logits are used.
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
    """Compute the logits of linear probes (classifiers), each from the hidden state of one layer of the first teacher.

    A hidden state is first averaged over its positions (tokens or pixels) and scaled to a mean square of 1.

    Args:
        probes: kernel and bias of each probe, from `init_probes`.
        signals: the inputs of a loss term: outputs of student and teachers, the batch and its mask.
        layers: the teacher layer of each probe; 0 is the embedding.
    """

    def each(probe: Mapping[str, Array], layer: int) -> Float[Array, "*batch classes"]:
        state = precise(signals.teachers[0].hidden_states[layer])
        x = mean_over_positions(state, signals.batch, signals.mask.ndim, trailing=1)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        return by_rows(x @ probe["kernel"] + probe["bias"])

    return jnp.stack([each(probe, layer) for probe, layer in zip(probes, layers, strict=True)])


def path_weights(fused: Signals, layers: Sequence[int]) -> Array:
    """Return the gate's weight of each path for each example (or token), `[paths, *batch]`.

    A path is a pair of a student layer and a teacher layer to match; a gate is a network that weights the paths.

    Args:
        fused: the inputs of a loss term, whose `teacher` is the result of the gate.
        layers: the teacher layers that linear probes read, one for each path.

    Raises:
        ValueError: the gate computes no path weights, or not one for each of `layers`.
    """
    routes = None if fused.teacher is None else fused.teacher.routes
    if routes is None or len(routes) != len(layers):
        raise ValueError(f"{len(layers)} layers are probed; routing needs fusion='gate(paths={len(layers)})'")
    return routes
