"""Build a model from its spec string, such as "mlp(widths=(64,), classes=10)"."""

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.models.combinators import in_dtype


def build_model(spec: str, path: str, dtype: str) -> Model:
    """Build the model that a spec string describes. The model computes in `dtype`; its parameters stay in float32.

    Args:
        spec: name and arguments of a registered model factory, such as "mlp(widths=(64,), classes=10)".
        path: config key of the spec string, such as `student.model`, for error messages.
        dtype: dtype of the model's computation, "float32" or "bfloat16".

    Raises:
        ConfigError: the spec string is empty, names an unknown model, or has wrong arguments.
    """
    if not spec:
        raise ConfigError(path, f"no model is set. Known: {', '.join(registry.models)}.")
    model = registry.models.build(spec, path)
    return in_dtype(model, dtype) if dtype != "float32" else model
