"""Read how the model in a folder is built: the spec of its network, its architecture and its tokenizer."""

from pathlib import Path
from typing import Any

from jaxdistill.core.spec import Spec, parse
from jaxdistill.export import model_folder
from jaxdistill.export.model_folder import About
from jaxdistill.export.network import Definition
from jaxdistill.models.pretrained import architecture_of_spec


def model_spec(folder: Path, about: About) -> str:
    """Return the spec string that builds the model of a folder.

    A model with a Hugging Face format is built from the files of the folder.

    Args:
        folder: the folder of the model.
        about: what `model_folder.read_about` reads from it.
    """
    if not about.hub_layout:
        return about.model
    return repr(Spec("pretrained", (str(folder),), {name: _tuples(value) for name, value in about.options.items()}))


def definition_of(folder: Path) -> Definition | None:
    """Return the architecture and the tokenizer of the model in a folder, without its weights.

    Args:
        folder: the folder of the model.

    Returns:
        The definition; None: the model has no Hugging Face format.
    """
    about, tokenizer = model_folder.read_about(folder), folder / "tokenizer.json"
    form = architecture_of_spec(model_spec(folder, about))
    end = str(parse(about.tokens, "tokens").kwargs.get("end", "")) if about.tokens else ""
    return form and Definition(form.family, form.arguments, tokenizer if tokenizer.is_file() else None, end)


def _tuples(value: Any) -> Any:
    """Return lists, which JSON has instead of tuples, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
