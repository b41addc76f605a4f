"""Build a model from its spec string."""

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.models.combinators import in_dtype


def build_model(spec: str, path: str, dtype: str) -> Model:
    """Build the model of a spec string. It computes in `dtype`; its parameters stay in float32.

    Args:
        spec: for example "mlp(widths=(64,), classes=10)".
        path: the config path of the spec, for error messages.
        dtype: "float32" or "bfloat16".

    Raises:
        ConfigError: an unknown name, or wrong arguments.
    """
    if not spec:
        raise ConfigError(path, f"no model is set. Known: {', '.join(registry.models)}.")
    model = registry.models.build(spec, path)
    return in_dtype(model, dtype) if dtype != "float32" else model
