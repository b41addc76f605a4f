"""jaxdistill: knowledge distillation in JAX. Small models inherit from large ones.

`make(...)` builds a config, and `distill(config, workdir)` trains and evaluates the student that the config describes.
The decorators in `jaxdistill.registry` register your own losses, models, data sets and training steps. Submodules are
imported on first use, so that `import jaxdistill` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxdistill.run.old_names import install

if TYPE_CHECKING:  # the same names as in `_HOMES` and `_MODULES`, for type checkers: `__getattr__` returns Any
    from jaxdistill.core import registry as registry
    from jaxdistill.core.collectives import by_rows as by_rows
    from jaxdistill.core.errors import ConfigError as ConfigError
    from jaxdistill.core.interfaces import Fusion as Fusion
    from jaxdistill.core.interfaces import Model as Model
    from jaxdistill.core.interfaces import Step as Step
    from jaxdistill.core.interfaces import Term as Term
    from jaxdistill.core.types import Factored as Factored
    from jaxdistill.core.types import Outputs as Outputs
    from jaxdistill.core.types import Signals as Signals
    from jaxdistill.core.types import TrainState as TrainState
    from jaxdistill.models.layers import nudged as nudged
    from jaxdistill.models.nnx import from_nnx as from_nnx
    from jaxdistill.run.config import differ as differ
    from jaxdistill.run.config import make as make
    from jaxdistill.run.config_files import choose as choose
    from jaxdistill.run.config_files import load_config as load_config
    from jaxdistill.run.distill import distill as distill
    from jaxdistill.run.predict import load as load
    from jaxdistill.run.resolve import resolve as resolve

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("make", "differ"), "run.config"),
    "choose": "run.config_files",
    "load_config": "run.config_files",
    "load": "run.predict",
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
    if name == "config":  # an old name: see run/old_names.py
        return importlib.import_module("jaxdistill.config")
    if name in _MODULES:
        return importlib.import_module(f"jaxdistill.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxdistill.{_HOMES[name]}"), name)
