"""Turn guides into notebooks: the same text and the same code, so that there is one source.

A block of Python becomes a cell; one whose docstring begins with the name of a file is written to that file. A block of
commands becomes a cell that runs them with the Python of the notebook.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GUIDES = Path(__file__).parents[1] / "guides"
NOTEBOOKS = ("own_csv", "own_parts")
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n?", re.M | re.S)
SETUP = """# Choose a kernel of the environment in which jaxdistill is installed
import sys

python = sys.executable"""


def notebook(guide: Path) -> dict[str, Any]:
    """Return a guide as a notebook of format 4.5.

    Args:
        guide: a Markdown file.
    """
    cells = [*_cells(guide.read_text())]
    cells.insert(1, _cell("code", SETUP))
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": metadata,
        "cells": [{"id": f"cell-{number}", **cell} for number, cell in enumerate(cells)],
    }


def _cells(text: str) -> Iterator[dict[str, Any]]:
    """Yield the cells of a guide: its title, then prose and code in order."""
    title, _, text = text.partition("\n")
    yield _cell("markdown", title)
    end = 0
    for match in BLOCK.finditer(text):
        if prose := text[end : match.start()].strip():
            yield _cell("markdown", _linked(prose))
        end = match.end()
        language, code = match[1], match[2].rstrip()
        yield _cell("code", _code(language, code)) if language else _cell("markdown", f"```\n{code}\n```")
    if prose := text[end:].strip():
        yield _cell("markdown", _linked(prose))


def _code(language: str, code: str) -> str:
    if language == "sh":
        return re.sub(r"^jaxdistill ", "!{python} -m jaxdistill ", code, flags=re.M)
    file = re.match(r'"""(\w+\.py):', code)
    return f"%%writefile {file[1]}\n{code}" if file else code


def _linked(prose: str) -> str:
    """Return a text that names the files of the repository to which it links, since a notebook may lie anywhere."""
    named = lambda match: f"{match[1]} (`{(GUIDES / match[2]).resolve().relative_to(ROOT)}`)"
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)[^)]*\)", named, prose)


def _cell(kind: str, source: str) -> dict[str, Any]:
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True), **code}


def write_notebooks(folder: Path) -> None:
    """Write the notebooks into a folder, as NAME.ipynb."""
    for name in NOTEBOOKS:
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook(GUIDES / f"{name}.md"), indent=1) + "\n")
