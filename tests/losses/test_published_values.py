"""Losses beside the published code, in value and gradient: to 1e-12 in float64, to 1e-5 in float32.

`golden/losses.npz` holds what the published code said, in float64 and with the reduction that its source documents;
each line below says that reduction in our functions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.losses.hidden.attention_transfer import attention_map
from jaxdistill.losses.logits.dist import correlation_distance
from jaxdistill.losses.logits.dkd import other_divergence, target_divergence
from jaxdistill.losses.logits.jsd import generalized_jsd
from jaxdistill.losses.logits.kd import kl_divergence
from jaxdistill.losses.relations.pkt import neighbour_divergence
from jaxdistill.losses.relations.relations import valid_pairs
from jaxdistill.losses.relations.rkd import angle_difference, distance_difference
from jaxdistill.losses.relations.similarity import gram_difference

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")


def over_tokens(values, labels):
    """The mean where the label is none of the padding."""
    return jnp.sum(jnp.where(labels != -100, values, 0.0)) / jnp.sum(labels != -100)


def positions(x):
    """Maps `[batch, channels, height, width]` as `[batch, positions, channels]`."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1), 1, -1)


every_row = lambda x: jnp.ones(x.shape[0], bool)

# name -> (student, teacher, labels or None) -> the scalar that the source reports
PUBLISHED: dict[str, Callable[..., Any]] = {
    "attention_transfer": lambda s, t, _: jnp.mean((attention_map(positions(s)) - attention_map(positions(t))) ** 2),
    "dist_b1_g2": lambda s, t, _: correlation_distance(s, t, jnp.ones(16, bool), 1.0, 2.0),
    "dkd_a1_b8_T4": lambda s, t, y: (
        16.0 * jnp.mean(target_divergence(s, t, y, 4.0) + 8.0 * other_divergence(s, t, y, 4.0))
    ),
    "jsd_b0.5_T1.5_no_T2": lambda s, t, y: over_tokens(generalized_jsd(s, t, 0.5, 1.5), y),
    "jsd_b0_T1.5_no_T2": lambda s, t, y: over_tokens(generalized_jsd(s, t, 0.0, 1.5), y),
    "jsd_b1_T1.5_no_T2": lambda s, t, y: over_tokens(generalized_jsd(s, t, 1.0, 1.5), y),
    "kd_T2": lambda s, t, _: jnp.mean(4.0 * kl_divergence(s, t, 2.0)),
    "kd_T4": lambda s, t, _: jnp.mean(16.0 * kl_divergence(s, t, 4.0)),
    "pkt": lambda s, t, _: neighbour_divergence(s, t, every_row(s)),
    "rkd_25_50": lambda s, t, _: (
        25 * distance_difference(s, t, valid_pairs(every_row(s))) + 50 * angle_difference(s, t, every_row(s))
    ),
    "similarity": lambda s, t, _: gram_difference(s, t, valid_pairs(every_row(s))),
}


@pytest.mark.sampled("*float64")
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_loss_equals_the_published_code_in_value_and_gradient(name, precision):
    with jax.enable_x64(precision == "float64"):
        student, teacher = (jnp.asarray(GOLDEN[f"{name}/{which}"], precision) for which in ("student", "teacher"))
        labels = jnp.asarray(GOLDEN[f"{name}/labels"]) if f"{name}/labels" in GOLDEN else None
        value, gradient = jax.jit(jax.value_and_grad(lambda s: PUBLISHED[name](s, teacher, labels)))(student)
        assert value.dtype == gradient.dtype == precision
    tolerance = 1e-12 if precision == "float64" else 1e-5
    for found, said in ((value, GOLDEN[f"{name}/value"]), (gradient, GOLDEN[f"{name}/grad"])):
        assert np.abs(np.asarray(found, np.float64) - said).max() <= tolerance * max(1.0, np.abs(said).max())
