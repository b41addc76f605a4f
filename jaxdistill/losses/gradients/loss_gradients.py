"""Gradients of the task loss in hidden states of chosen layers: what moves the loss where, in student and teacher.

Matching the gradients of the loss began with those in the input: Zagoruyko and Komodakis, Paying More Attention to
Attention, 2017, section 3.2 (arxiv.org/abs/1612.03928), squared distance; for language models in embeddings, Wang, Li
and Sun, Gradient Knowledge Distillation, 2022 (arxiv.org/abs/2211.01071). Here they are those in mapped layers, and
compared by their cosine: a confident network has small gradients everywhere, and size is no knowledge.

    mean over layer pairs of 1 - cos(g_s, W g_t),  g = d CE(label) / d h

A hint maps the student's hidden state to the teacher's, h_t = W^T h_s; by the chain rule the gradient goes the other
way, g_s = W g_t. So the projector has the shape of a hint's and is applied to the TEACHER's gradient, transposed. A
learned one can follow the student; a fixed one (orthonormal, drawn once) cannot, and asks more of it.

The cosine is over a row's positions and widths together, so that positions weigh by the size of their gradients; of
running text, where every token has a label, it is taken token by token. The gradients are those of the cross-entropy
with the field `label`, whatever the objective's task is: beside `mixup` they are of the first image's class. A row of
which a network is perfectly sure has a gradient of zero, and counts 1 without a gradient.

Config: objective.loss_gradients.term = "loss_gradients(layers='last')"
When: beside hints, as their derivative, and measured: on 100 digits it gained nothing (`experiments/jacobian`).
Checked: by hand, by plain float64 numpy.
Experiment: `experiments/jacobian`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Signals, Term
from jaxdistill.losses.hidden.hidden import cosine_distance, hidden
from jaxdistill.losses.hidden.layers import LayerMap, aligned, layer_pairs
from jaxdistill.losses.hidden.projectors import project
from jaxdistill.losses.term import one_of, precise, without_padding


@losses.register
def loss_gradients(
    layers: LayerMap = "uniform",
    projector: Literal["linear", "fixed", "none"] = "linear",
    teacher: int = 0,
) -> Term:
    """Gradients of the task loss in hidden states of chosen layers, by their cosine.

    Where the states' extents (positions, tokens) differ, gradients are averaged over them first. Padding counts
    nothing.

    Args:
        layers: the layer map, see `losses/layers.py`.
        projector: "linear" learns a kernel per pair; "fixed" draws one whose rows (columns, where there are fewer) are
            orthonormal; "none" compares gradients as they are and needs equal widths.
        teacher: which teacher.

    Raises:
        ValueError: when it is applied, widths differ and there is no projector, or a layer does not exist.
    """
    hints = hidden(
        layers, "none" if projector == "none" else "linear", teacher=teacher
    )  # whose kernels have the shapes

    def init(key, signals):
        kernels, state = hints.init(key, signals)
        if projector != "fixed":
            return kernels, state
        orthonormal, keys = jax.nn.initializers.orthogonal(), jax.random.split(key, len(kernels))
        return {}, {n: orthonormal(k, x.shape) for k, (n, x) in zip(keys, kernels.items(), strict=True)}

    def apply(params, state, signals, *, key):
        students, target = signals.student.state_gradients, one_of(signals.teachers, teacher)
        kernels, values = state if projector == "fixed" else params, []
        for number, (i, j) in enumerate(layer_pairs(layers, len(students), len(target.hidden_states))):
            student, wanted = (precise(x) for x in aligned(students[i], target.state_gradients[j], signals))
            if projector == "none":
                student = project("none", {}, student, wanted)
            else:  # backwards, see above
                wanted = project("linear", {"kernel": kernels[f"{number}/kernel"].T}, wanted, student)
            values.append(cosine_distance(_flat(student, signals), _flat(wanted, signals)))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, local=False, needs=frozenset({"teacher", "state_gradients"}))


def _flat(gradient: Array, signals: Signals) -> Array:
    """`[*batch, *extent, width] -> [*batch, dims]`, with zeros where a text is padded."""
    return without_padding(gradient, signals.batch).reshape(*signals.mask.shape, -1)
