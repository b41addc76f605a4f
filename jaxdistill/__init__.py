"""jaxdistill: knowledge distillation in JAX. Small models inherit from large ones.

`make(...)` builds a config, and `distill(config, workdir)` trains and evaluates the student that the config describes.
The decorators in `jaxdistill.registry` register your own losses, models, data sets and training steps. Submodules are
imported on first use, so that `import jaxdistill` is fast.
"""

import importlib
from typing import Any

from jaxdistill.core.old_names import install

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("make", "differ"), "run.config"),
    **dict.fromkeys(("load", "choose"), "run.config_files"),
    "resolve": "run.resolve",
    "distill": "run.distill",
    **dict.fromkeys(("Fusion", "Model", "Step", "Term"), "core.interfaces"),
    **dict.fromkeys(("Factored", "Outputs", "Signals", "TrainState"), "core.types"),
    "from_nnx": "models.nnx",
    "by_rows": "core.collectives",
    "nudged": "models.layers",
    "ConfigError": "core.errors",
}
_MODULES = {"registry": "core.registry"}

__all__ = ["__version__", *_HOMES, *_MODULES]

install()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxdistill.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxdistill.{_HOMES[name]}"), name)
