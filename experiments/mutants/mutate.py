"""Make mutants: copies of a source file with one small change, by the operators of the library cosmic-ray.

Decorated functions are mutated like all others (mutmut skips them). Left out are annotations, docstrings and
decorators, whose change the tests see only as a failed import, or not at all.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "FloorDiv_Mul", "Mod_Mul", "BitAnd_BitOr")
BINARY = (*BINARY, "BitOr_BitAnd")
COMPARISONS = ("Eq_NotEq", "NotEq_Eq", "Lt_GtE", "LtE_Gt", "Gt_LtE", "GtE_Lt", "Is_IsNot", "IsNot_Is")
EDGES = ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")
OTHERS = (
    "ReplaceUnaryOperator_Delete_USub",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "NumberReplacer",
)
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{name}" for name in BINARY),
    *(f"core/ReplaceComparisonOperator_{name}" for name in (*COMPARISONS, *EDGES)),
    *(f"core/{name}" for name in OTHERS),
)


FEW = 4  # mutants of a file, below which arguments of calls are emptied too


class Mutant(NamedTuple):
    """One change of one file.

    file: path of the file, relative to the repository
    line: line of the change
    operator: operator of cosmic-ray, or "arguments swapped"
    before, after: the line without and with the change; of several lines, the first that differs
    source: the whole changed file
    """

    file: str
    line: int
    operator: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """Identifies the mutant, as long as its file stays as it is."""
        text = f"{self.file} {self.line} {self.operator} {self.source}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def mutants(root: Path, file: str) -> Iterator[Mutant]:
    """All mutants of a file."""
    source = (root / file).read_text()
    left_out = _lines_left_out(source)
    seen = set()
    changes = [*_by_cosmic_ray(source), *_swapped(source)]
    if len(changes) < FEW:  # a part that only passes its arguments on
        changes += _emptied(source)
    for operator, changed in changes:
        before, after = source.split("\n"), changed.split("\n")
        line = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), None)
        if line is None or line + 1 in left_out or changed in seen or not _parses(changed):
            continue
        if operator.endswith("BitOr_BitAnd") and _only_in_types(before[line]):
            continue
        seen.add(changed)
        yield Mutant(file, line + 1, operator, before[line].strip(), after[line].strip(), changed)


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _lines_left_out(source: str) -> set[int]:
    """Lines of docstrings, decorators, imports and errors, and of what only types read."""
    lines: set[int] = set()
    cover = lambda node: lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise):  # an error's text, and whether there is one
            cover(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            cover(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                cover(decorator)
        if isinstance(node, ast.AnnAssign) and node.value is None:
            cover(node)
    return lines


def _only_in_types(line: str) -> bool:
    """Return True if the `|` of a line joins types, as in `float | None`."""
    return bool(re.search(r"(->|:) [^=]*\w\]? \| \w", line))


def _by_cosmic_ray(source: str) -> Iterator[tuple[str, str]]:
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    for name in OPERATORS:
        operator: Any = plugins.get_operator(name)()
        for place, node in enumerate(ast_nodes(get_ast(source))):
            for index, _ in enumerate(operator.mutation_positions(node)):
                tree = get_ast(source)  # a mutation changes its tree
                target = next(n for p, n in enumerate(ast_nodes(tree)) if p == place)
                mutated = operator.mutate(target, index)
                if mutated is None:
                    continue
                if target is tree:
                    tree = mutated
                elif mutated is not target:
                    siblings = target.parent.children
                    siblings[siblings.index(target)] = mutated
                yield name.removeprefix("core/"), tree.get_code()


class _Swap(ast.NodeVisitor):
    """Finds calls whose first two positional arguments are names or attributes, as `kl(student, teacher)`."""

    def __init__(self) -> None:
        self.pairs: list[tuple[ast.expr, ast.expr]] = []

    def visit_Call(self, node: ast.Call) -> None:
        plain = (ast.Name, ast.Attribute, ast.Subscript)
        if len(node.args) >= 2 and all(isinstance(x, plain) for x in node.args[:2]):
            self.pairs.append((node.args[0], node.args[1]))
        self.generic_visit(node)


def _emptied(source: str) -> Iterator[tuple[str, str]]:
    """Sources with `()` in place of a name that is an argument of a call."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        for argument in node.args if isinstance(node, ast.Call) else ():
            if isinstance(argument, ast.Name) and argument.end_col_offset is not None:
                row = lines[argument.lineno - 1].encode()
                changed = (row[: argument.col_offset] + b"()" + row[argument.end_col_offset :]).decode()
                before, after = lines[: argument.lineno - 1], lines[argument.lineno :]
                yield "argument emptied", "\n".join([*before, changed, *after])


def _swapped(source: str) -> Iterator[tuple[str, str]]:
    """Sources with the first two arguments of one call in the other order."""
    finder = _Swap()
    finder.visit(ast.parse(source))
    lines = source.split("\n")
    for one, two in finder.pairs:
        if not one.lineno == one.end_lineno == two.lineno == two.end_lineno or ast.dump(one) == ast.dump(two):
            continue
        row = lines[one.lineno - 1].encode()
        a, b, c, d = one.col_offset, one.end_col_offset, two.col_offset, two.end_col_offset
        changed = b"".join((row[:a], row[c:d], row[b:c], row[a:b], row[d:])).decode()
        yield "arguments swapped", "\n".join([*lines[: one.lineno - 1], changed, *lines[one.lineno :]])
