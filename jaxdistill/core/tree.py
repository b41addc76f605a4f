"""Names of the leaves of a pytree."""

import jax


def path_name(path: tuple) -> str:
    """Return a leaf's path as one string: `params/student/blocks/0/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
