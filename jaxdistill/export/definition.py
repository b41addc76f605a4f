"""Read how the model in a folder is built: its spec string, its architecture and its tokenizer."""

from pathlib import Path
from typing import Any

from jaxdistill.core.spec import Spec, parse
from jaxdistill.export import model_folder
from jaxdistill.export.model_folder import About
from jaxdistill.export.network import Definition
from jaxdistill.models.pretrained import architecture_of_spec


def model_spec(folder: Path, about: About) -> str:
    """Return the spec string (a registered name with arguments, as text) that builds the model in a folder.

    For a model in the Hugging Face format, it is `pretrained(FOLDER)`, which reads the files of the folder.

    Args:
        folder: the folder of the model.
        about: the description of the model, from `model_folder.read_about`.
    """
    if not about.hub_layout:
        return about.model
    return repr(Spec("pretrained", (str(folder),), {name: _tuples(value) for name, value in about.options.items()}))


def definition_of(folder: Path) -> Definition | None:
    """Read the architecture and the tokenizer of the model in a folder, without its weights.

    Args:
        folder: the folder of the model.

    Returns:
        The definition, or None if the model has no Hugging Face format.
    """
    about, tokenizer = model_folder.read_about(folder), folder / "tokenizer.json"
    form = architecture_of_spec(model_spec(folder, about))
    end = str(parse(about.tokens, "tokens").kwargs.get("end", "")) if about.tokens else ""
    return form and Definition(form.family, form.arguments, tokenizer if tokenizer.is_file() else None, end)


def _tuples(value: Any) -> Any:
    """Convert lists, also nested ones, to tuples, which JSON does not have."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
