"""The tokens that a cut vocabulary kept, as `jaxdistill vocabulary` wrote them."""

import json
from pathlib import Path


def read(folder: str) -> tuple[tuple[int, ...], int]:
    """The kept tokens, by their old numbers, and the size of the whole vocabulary.

    Raises:
        ValueError: the folder holds none.
    """
    file = Path(folder).expanduser() / "vocabulary.json"
    try:
        content = json.loads(file.read_text())
        ids, size = tuple(content["ids"]), content["size"]
        if list(ids) != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < size:
            raise ValueError("its numbers do not rise, or exceed its size")
        return ids, size
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        cure = "write it by jaxdistill vocabulary"
        raise ValueError(f"{file} is no vocabulary ({type(error).__name__}: {error}); {cure}") from None
