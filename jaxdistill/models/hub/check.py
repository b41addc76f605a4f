"""Require that a pretrained checkpoint fits a model, before its weights are read."""

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Shapes
from jaxdistill.models.abstract import abstract_outputs


def check_pretrained(model: Model, path: str, shapes: Shapes, *, complete: bool) -> None:
    """Check names and shapes of the arrays in a model's pretrained checkpoint, without reading weights.

    Args:
        model: the model; nothing is checked if its `load` is None, because it has no checkpoint then.
        path: config key of the model, such as `student.model`, for error messages.
        shapes: shapes and dtypes of a batch, `{field: jax.ShapeDtypeStruct}`.
        complete: require weights for every array of the model, including the head. Set it for a model that is not
            trained in this run, because arrays without weights would keep their random initial values.

    Raises:
        ConfigError: the checkpoint does not fit the model, or lacks weights although `complete` is set.
    """
    if model.load is None:
        return
    try:
        pretrained = model.load(abstract_outputs(model, path, shapes, pairs=True)[1])
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None
    if complete and pretrained.fresh:
        cure = f"Train the model in this run: {path.removesuffix('.model')}.steps=1000"
        raise ConfigError(path, f"the checkpoint has no weights for {', '.join(pretrained.fresh[:4])}. {cure}.")
