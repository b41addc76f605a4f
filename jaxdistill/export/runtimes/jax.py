"""Run a StableHLO program by JAX."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

PACKAGE = "jax"


def open_file(file: Path, threads: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Open a StableHLO program, and return the function that it computes.

    Args:
        file: the file.
        threads: not used: XLA has a thread for each processor that the process may use.
    """
    import jax
    from jax import export

    call = jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
    return lambda rows: np.asarray(call(dict(rows)))
