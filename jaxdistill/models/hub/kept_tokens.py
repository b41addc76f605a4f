"""Read which tokens of a tokenizer a reduced vocabulary keeps; the command `jaxdistill vocabulary` writes it."""

import json
from pathlib import Path

from jaxdistill.core import seal

VOCABULARY = "vocabulary.json"


def read_kept_tokens(folder: str) -> tuple[tuple[int, ...], int]:
    """Read the ids of the tokens that a reduced vocabulary keeps, from the file `vocabulary.json`.

    The command `jaxdistill vocabulary` writes this file.

    Args:
        folder: folder that contains the file.

    Returns:
        The ids of the kept tokens in the full vocabulary, in increasing order, and the size of the full vocabulary.

    Raises:
        ValueError: the folder has no valid `vocabulary.json`.
        DamageError: the file has changed since it was written.
    """
    file = Path(folder).expanduser() / VOCABULARY
    seal.check_in_folder(file)
    try:
        content = json.loads(file.read_text())
        ids, size = tuple(content["ids"]), content["size"]
        if not all(type(number) is int for number in (*ids, size)):
            raise ValueError("an id or the size is no whole number")
        if list(ids) != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < size:
            raise ValueError("its ids are not increasing, or exceed its size")
        return ids, size
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        cure = "create it with `jaxdistill vocabulary`"
        raise ValueError(f"{file} is not a valid vocabulary ({type(error).__name__}: {error}); {cure}") from None
