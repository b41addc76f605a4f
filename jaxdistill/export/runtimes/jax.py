"""Run a StableHLO program with JAX."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

PACKAGE = "jax"


def open_file(file: Path, threads: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load a StableHLO program, and return the function that it computes, `{input: [rows, ...]} -> output [rows, ...]`.

    Args:
        file: the file of `jax.export`.
        threads: ignored, because XLA has a thread for each processor that the process may use.
    """
    import jax
    from jax import export

    call = jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
    return lambda rows: np.asarray(call(dict(rows)))
