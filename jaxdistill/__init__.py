"""jaxdistill: knowledge distillation in JAX. Small models inherit from large ones.

`distill(config, workdir)` runs a config and `make(...)` makes one; `jaxdistill.registry` takes parts of your own.
Everything is imported on first use, so that `import jaxdistill` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "make": "config",
    "distill": "run",
    **dict.fromkeys(("Factored", "Fusion", "Model", "Outputs", "Signals", "Step", "Term", "TrainState"), "types"),
    "from_nnx": "models.nnx",
    "by_rows": "parallel.collectives",
    "nudged": "models.layers",
    "ConfigError": "errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxdistill.{_HOMES[name]}"), name)
