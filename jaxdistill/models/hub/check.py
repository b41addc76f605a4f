"""Whether a pretrained checkpoint fits a model, before any weight is read."""

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import Model, Shapes
from jaxdistill.models.abstract import abstract_outputs


def check_pretrained(model: Model, path: str, shapes: Shapes, *, complete: bool) -> None:
    """A model's checkpoint of the world fits it; where nothing will be trained, it has weights for every array."""
    if model.load is None:
        return
    try:
        found = model.load(abstract_outputs(model, path, shapes)[1])
    except ValueError as error:
        raise ConfigError(path, f"{error}.") from None
    if complete and found.fresh:
        cure = f"Train it here: {path.removesuffix('.model')}.steps=1000"
        raise ConfigError(path, f"its checkpoint has no weights for {', '.join(found.fresh[:4])}. {cure}.")
