"""Read the tokens of a reduced vocabulary, which `jaxdistill vocabulary` writes."""

import json
from pathlib import Path


def read_kept_tokens(folder: str) -> tuple[tuple[int, ...], int]:
    """Read the original ids of the kept tokens, and the size of the full vocabulary.

    Raises:
        ValueError: the folder has no valid `vocabulary.json`.
    """
    file = Path(folder).expanduser() / "vocabulary.json"
    try:
        content = json.loads(file.read_text())
        ids, size = tuple(content["ids"]), content["size"]
        if list(ids) != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < size:
            raise ValueError("its ids are not increasing, or exceed its size")
        return ids, size
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        cure = "create it with `jaxdistill vocabulary`"
        raise ValueError(f"{file} is not a valid vocabulary ({type(error).__name__}: {error}); {cure}") from None
