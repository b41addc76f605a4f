"""The text of a compiled program, read: which instructions one device runs, and how often.

XLA writes an instruction a line, `%name = type operation(%operands), attributes`, in computations that call each other.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

HEAD = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*)$")
NAME = re.compile(r"%([\w.-]+)")


class Instruction(NamedTuple):
    """One line. home: its computation; given: what stands in its parentheses; more: its attributes."""

    home: str
    name: str
    type: str
    operation: str
    given: str
    more: str

    @property
    def operands(self) -> list[str]:
        """Names of what it reads, all of its own computation."""
        return NAME.findall(self.given)

    def attribute(self, name: str) -> list[str]:
        """The names that an attribute holds: `body=%a`, `branch_computations={%a, %b}`."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.-]+)", self.more)
        return NAME.findall(found[1]) if found else []


Computation = dict[str, Instruction]


class Executed(NamedTuple):
    """An instruction, the types of what it reads, and how often it runs."""

    instruction: Instruction
    operands: list[str]
    times: float


def executed(text: str) -> Iterator[Executed]:
    """All instructions that one device runs. Of n branches each runs 1 / n times, since nobody knows which."""
    computations, entry = _parse(text)

    def walk(name: str, times: float) -> Iterator[Executed]:
        home = computations[name]
        for each in home.values():
            yield Executed(each, [home[operand].type for operand in each.operands if operand in home], times)
            for inner, turns in _called(each, computations):
                yield from walk(inner, times * turns)

    yield from walk(entry, 1)


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the name of the one that is the program."""
    computations: dict[str, Computation] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif current and (found := LINE.match(line)):
            computations[current][found[1]] = _instruction(current, found[1], found[2])
    return computations, entry


def _instruction(home: str, name: str, text: str) -> Instruction:
    end = _closed(text) if text.startswith("(") else text.index(" ")
    operation, _, rest = text[end:].strip().partition("(")
    inside = _closed("(" + rest) - 2
    return Instruction(home, name, text[:end], operation, rest[:inside], rest[inside + 1 :])


def _closed(text: str) -> int:
    """The place behind the parenthesis that closes the first one."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    return len(text)


def _called(each: Instruction, computations: dict[str, Computation]) -> Iterator[tuple[str, float]]:
    """The computations that an instruction runs, and how often."""
    match each.operation:
        case "while":
            yield each.attribute("body")[0], turns(each, computations)
        case "call":
            yield each.attribute("to_apply")[0], 1
        case "fusion" | "async-start":
            yield each.attribute("calls")[0], 1
        case "conditional":
            branches = each.attribute("branch_computations")
            branches = branches or each.attribute("true_computation") + each.attribute("false_computation")
            yield from ((name, 1 / len(branches)) for name in branches)


def turns(loop: Instruction, computations: dict[str, Computation]) -> int:
    """How often a loop's body runs: as XLA notes it, or up to the bound that its counter is compared with."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.more):
        return int(noted[1])
    condition = computations[loop.attribute("condition")[0]]
    compared = next((each for each in condition.values() if "direction=LT" in each.more), None)
    if compared is None:
        return 1
    counter, bound = (condition[name] for name in compared.operands)
    begun = _begun(computations[loop.home], loop, re.search(r"index=(\d+)", counter.more))
    return int(bound.given) - begun if bound.given.isdigit() else 1


def _begun(home: Computation, loop: Instruction, index: re.Match[str] | None) -> int:
    """What a loop's counter is before its first turn: 0, but for a loop whose first turns stand before it."""
    initial = home[loop.operands[0]]
    if index is None or initial.operation != "tuple":
        return 0
    first = home[initial.operands[int(index[1])]]
    return int(first.given) if first.operation == "constant" and first.given.isdigit() else 0
