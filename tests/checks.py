"""Assertions and predicates on trees of arrays: close, equal, finite; and conversion to float64."""

from typing import Any

import jax
import numpy as np


def assert_close(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Require that two trees have the same structure, and numbers that agree within the tolerances."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def assert_same(a: Any, b: Any) -> None:
    """Require that two trees hold exactly the same numbers."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def all_finite(tree: Any) -> bool:
    """Return True if no number of the tree is NaN or infinite."""
    return all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(tree)))


def float64(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def softmax(z: Any) -> np.ndarray:
    e = np.exp(np.asarray(z, np.float64))
    return e / e.sum(-1, keepdims=True)
