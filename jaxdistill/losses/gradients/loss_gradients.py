"""Gradient matching in hidden layers: match the gradients of the task loss in chosen hidden states, by cosine.

The first papers match the gradients of the loss in the input: Zagoruyko and Komodakis, Paying More Attention to
Attention, 2017, section 3.2 (arxiv.org/abs/1612.03928), by squared distance; for language models in the embeddings,
Wang, Li and Sun, Gradient Knowledge Distillation, 2022 (arxiv.org/abs/2211.01071). Here the gradients in the hidden
states of chosen layers are matched. They are compared by cosine, because a confident network has small gradients
everywhere and their size carries no knowledge.

    mean over layer pairs of 1 - cos(g_s, W g_t),  g = d CE(label) / d h

h is a hidden state, and W a projector. Losses that match hidden states, such as `hidden`, project the student's state
to the teacher's, h_t = W^T h_s. By the chain rule the gradient goes the other way, g_s = W g_t. The projector therefore
has the same shape as in `hidden`, but is transposed and applied to the TEACHER's gradient. A learned projector can
adapt to the student; a fixed one (orthonormal, drawn once) cannot, so that the student itself must adapt.

The cosine of an example is taken over all its positions and channels together, so that positions with larger gradients
weigh more. In language modelling, where every token has a label, it is taken for each token. The gradients are those of
the cross-entropy with the field `label` of the batch, whatever the task loss is: beside `mixup` they belong to the
class of the first of two mixed images. Where a network is perfectly certain of an example, the gradient is zero; the
loss of that example is 1, without a gradient.

Config: objective.loss_gradients.term = "loss_gradients(layers='last')"
When: beside hints, to match their derivatives too. Measure the gain: on 100 digits there was none
(`experiments/jacobian`).
Checked: by hand, against float64 numpy.
Experiment: `experiments/jacobian`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxdistill.core.interfaces import Term, Values
from jaxdistill.core.registry import losses
from jaxdistill.core.types import Array, Key, Params, Signals, State
from jaxdistill.losses.hidden.hidden import cosine_distance, hidden
from jaxdistill.losses.hidden.layers import LayerMap, average_if_extents_differ, chosen_pairs
from jaxdistill.losses.hidden.projectors import project
from jaxdistill.losses.term import mask_padding, precise, select_teacher


@losses.register
def loss_gradients(
    layers: LayerMap = "uniform",
    projector: Literal["linear", "fixed", "none"] = "linear",
    teacher: int = 0,
) -> Term:
    """Build the gradient matching loss term 1 - cos(g_s, W g_t), for gradients g of the task loss in hidden states.

    The task loss is the cross-entropy with the label. g_s belongs to a student layer, g_t to the teacher layer that is
    paired with it. W maps g_t to the student's width.
    The loss is the mean over the layer pairs. If student and teacher have different numbers of positions (pixels or
    tokens), each gradient is first averaged over its positions. Padding is left out.

    Args:
        layers: which student layer learns from which teacher layer: "uniform", "skip", "last", a range of teacher
            layers such as "6-9", or pairs such as ((1, 2), (2, 4)); see `layer_pairs`.
        projector: "linear" learns W for each layer pair; "fixed" draws W once, with orthonormal rows or columns, and
            does not train it; "none" leaves W out and needs equal widths.
        teacher: index of the teacher, in the order of the config.

    Raises:
        ValueError: `layers` has none of these forms; when the loss is computed, a layer does not exist, or the widths
            differ and the projector is "none".
    """
    # used only for its kernels, which have the shapes needed here
    hints = hidden(layers, "none" if projector == "none" else "linear", teacher=teacher)

    def init(key: Key, signals: Signals) -> tuple[Params, State]:
        kernels, state = hints.init(key, signals)
        if projector != "fixed":
            return kernels, state
        orthonormal, keys = jax.nn.initializers.orthogonal(), jax.random.split(key, len(kernels))
        return {}, {
            name: orthonormal(kernel_key, kernel.shape)
            for kernel_key, (name, kernel) in zip(keys, kernels.items(), strict=True)
        }

    def apply(params: Params, state: State, signals: Signals, *, key: Key) -> tuple[Values, State]:
        student_gradients = signals.student.state_gradients
        teacher_outputs = select_teacher(signals.teachers, teacher)
        pairs = chosen_pairs(signals, layers, teacher)
        kernels, values = state if projector == "fixed" else params, []
        for number, (i, j) in enumerate(pairs):
            gradients = average_if_extents_differ(student_gradients[i], teacher_outputs.state_gradients[j], signals)
            g_s, g_t = (precise(gradient) for gradient in gradients)
            if projector == "none":
                g_s = project("none", {}, g_s, g_t)
            else:  # backwards: the teacher's gradient to the student's width
                g_t = project("linear", {"kernel": kernels[f"{number}/kernel"].T}, g_t, g_s)
            values.append(cosine_distance(_flat(g_s, signals), _flat(g_t, signals)))
        return jnp.mean(jnp.stack(values), axis=0), state

    return Term(init, apply, local=False, needs=frozenset({"teacher", "state_gradients"}))


def _flat(gradient: Array, signals: Signals) -> Array:
    """Flatten a gradient, `[*batch, *positions, width] -> [*batch, dims]`, after setting padding tokens to zero."""
    return mask_padding(gradient, signals.batch).reshape(*signals.mask.shape, -1)
