"""Check that no variable of the library has a name that would fit anything."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "jaxdistill"
EMPTY = {"found", "given", "looks", "own", "said", "told"}  # words that would fit anything


def empty_names(source: str) -> list[tuple[str, int]]:
    """Return the variables in `EMPTY` to which a source text assigns, with their lines."""
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return [(node.id, node.lineno) for node in names if isinstance(node.ctx, ast.Store) and node.id in EMPTY]


def test_every_variable_says_what_it_holds():
    every = {str(file.relative_to(PACKAGE)): empty_names(file.read_text()) for file in PACKAGE.rglob("*.py")}
    assert {file: names for file, names in every.items() if names} == {}


def test_a_name_that_says_nothing_is_noticed():
    assert empty_names("x = 1\nfor found, y in z:\n    pass") == [("found", 2)]
