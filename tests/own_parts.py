"""A loss, a fusion and a model as a user writes them: the text of one file each."""

LOSS = '''
"""The absolute difference of logits."""
import jax.numpy as jnp
from jaxdistill.losses.term import stateless
from jaxdistill.registry import losses

@losses.register
def l1():
    return stateless(lambda s: jnp.abs(s.student.logits - s.teacher.logits).mean(-1), needs=frozenset({"teacher"}))
'''
FUSION = '''
"""The surest teacher's logits."""
import jax.numpy as jnp
from jaxdistill.registry import fusions
from jaxdistill import Fusion, Outputs

@fusions.register
def largest():
    most = lambda signals: jnp.max(jnp.stack([teacher.logits for teacher in signals.teachers]), axis=0)
    apply = lambda params, state, signals, *, key: (Outputs(most(signals)), state)
    return Fusion(lambda key, signals: ({}, {}), apply)
'''
MODEL = '''
"""A linear classifier."""
import math
from flax import nnx
from jaxdistill.models.layers import pixels
from jaxdistill.models.nnx import from_nnx
from jaxdistill.registry import models
from jaxdistill import Outputs

@models.register
def straight(classes: int):
    def call(module, batch, train, key):
        x = pixels(batch["image"], module.kernel.dtype).reshape(batch["image"].shape[0], -1)
        return Outputs(module(x), (x, x))

    return from_nnx(lambda rngs, batch: nnx.Linear(math.prod(batch["image"].shape[1:]), classes, rngs=rngs), call)
'''
