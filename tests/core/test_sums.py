"""Test `broadcast_mask`, which extends a mask over the last dimensions that it lacks."""

import jax.numpy as jnp
import numpy as np

from jaxdistill.core.sums import broadcast_mask


def test_a_mask_is_broadcast_over_the_dimensions_that_it_lacks():
    mask = jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    found = broadcast_mask(mask, (2, 3, 4, 5))
    assert found.shape == (2, 3, 4, 5) and found.dtype == jnp.bool_
    assert (found == (mask != 0)[:, :, None, None]).all()
    assert (broadcast_mask(mask[0], (3, 2)) == np.bool_([[1, 1], [0, 0], [1, 1]])).all()
