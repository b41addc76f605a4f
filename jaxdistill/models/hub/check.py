"""Check that a pretrained checkpoint fits a model, before any weight is read."""

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.interfaces import Model
from jaxdistill.core.types import Shapes
from jaxdistill.models.abstract import abstract_outputs


def check_pretrained(model: Model, path: str, shapes: Shapes, *, complete: bool) -> None:
    """Check that a pretrained checkpoint fits its model; a model without a checkpoint passes.

    Args:
        model: the model, with its checkpoint in `Model.load`.
        path: the config path of the model, for error messages.
        shapes: shapes of a batch.
        complete: require weights for every array, because the model is not trained in this run.

    Raises:
        ConfigError: the checkpoint does not fit, or lacks weights although `complete` is set.
    """
    if model.load is None:
        return
    try:
        pretrained = model.load(abstract_outputs(model, path, shapes)[1])
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None
    if complete and pretrained.fresh:
        cure = f"Train the model in this run: {path.removesuffix('.model')}.steps=1000"
        raise ConfigError(path, f"the checkpoint has no weights for {', '.join(pretrained.fresh[:4])}. {cure}.")
