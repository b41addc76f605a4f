"""Names of the leaves of a pytree."""

import jax


def path_name(path: tuple) -> str:
    """Convert a leaf's key path (from `jax.tree_util`) to a string such as `params/student/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
