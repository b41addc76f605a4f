"""Write products of rounded arrays and their gradients by qwix (Google, Apache-2.0), given the scales of our grids.

python tests/golden/qwix_reference.py     needs qwix 0.1.8, writes qwix.npz

qwix divides the largest value by 127.5 (7.5 for 4 bits), where our files have 127 and 7. So it is given a larger
maximum, which leads to the scale of the file. This compares rounding, product and straight-through gradient.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt_fwd_bwd

DIMENSIONS = (((1,), (0,)), ((), ()))
TYPES = {8: jnp.int8, 4: jnp.int4}


def main() -> None:
    draw = np.random.default_rng(0)
    x, w, g = (draw.normal(size=shape).astype(np.float32) for shape in ((5, 12), (12, 7), (5, 7)))
    found = {"x": x, "w": w, "g": g}
    for bits in (8, 4):
        high = 2 ** (bits - 1) - 1
        inputs = {"absmax": np.abs(x).max(1, keepdims=True) / 127 * 127.5}
        weights = {"absmax": np.abs(w).max(0, keepdims=True) / high * (high + 0.5)}
        config = DotGeneralQtConfig(lhs_qtype=jnp.int8, rhs_qtype=TYPES[bits])
        product = lambda x, w: dot_general_qt_fwd_bwd(x, w, inputs, weights, DIMENSIONS, config)  # noqa: B023
        y, back = jax.vjp(product, jnp.asarray(x), jnp.asarray(w))
        dx, dw = back(jnp.asarray(g))
        found |= {f"y{bits}": np.asarray(y), f"dx{bits}": np.asarray(dx), f"dw{bits}": np.asarray(dw)}
    np.savez(Path(__file__).with_name("qwix.npz"), **found)
    print({name: array.shape for name, array in found.items()})


if __name__ == "__main__":
    main()
