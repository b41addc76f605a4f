"""A model from its spec string."""

from jaxdistill.core import registry
from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Model
from jaxdistill.models.combinators import in_dtype


def build_model(spec: str, path: str, dtype: str) -> Model:
    """Builds the model of a spec, which computes in a dtype over float32 parameters.

    Args:
        spec: such as "mlp(widths=(64,), classes=10)".
        path: where the config names it, for messages.
        dtype: "float32" or "bfloat16".

    Raises:
        ConfigError: an unknown name, or wrong arguments.
    """
    if not spec:
        raise ConfigError(path, f"no model is named. Known: {', '.join(registry.models)}.")
    built = registry.models.build(spec, path)
    return in_dtype(built, dtype) if dtype != "float32" else built
