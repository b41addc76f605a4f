"""Train states that differ by a number, for tests that save and restore them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdistill.core.checkpoint import Checkpoints
from jaxdistill.core.types import TrainState

ACCURACIES = {10: 0.9, 20: 0.1, 30: 0.3, 40: 0.2}  # step: accuracy; the best step is not among the last two


def state(number: int) -> TrainState:
    """Make a train state whose step and arrays are determined by a number."""
    draw = lambda name, *shape: jax.random.normal(jax.random.key(number + len(name)), shape)
    params = {"student": {"up/kernel": draw("up", 8, 4), "up/bias": draw("bias", 4)}, "terms": {"kd": {}}}
    moving = {"student": {"norm/mean": draw("mean", 8)}}
    moments = optax.adam(0.1).init(params)
    return TrainState(jnp.asarray(number, jnp.int32), params, moving, moments, jax.random.key(number))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def same(a, b) -> bool:
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(bits(x)).tobytes() == np.asarray(bits(y)).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def reopened(folder):
    """Restore the newest good step of a folder; return it with its state and the reported messages."""
    said = []
    with Checkpoints(folder, report=said.append) as checkpoints:
        step, restored, data, _ = checkpoints.restore(abstract(state(0)))
        assert data == {"next": step}
    return step, restored, said
