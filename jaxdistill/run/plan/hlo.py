"""Parse the HLO text of a compiled program: which instructions one device executes, and how often.

XLA writes one instruction per line, `%name = type operation(%operands), attributes`, in computations that call each
other. Starting from the entry computation, every call multiplies the count of the called instructions: a loop by its
trip count, one of n branches by 1 / n.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

HEAD = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*)$")
NAME = re.compile(r"%([\w.-]+)")


class Instruction(NamedTuple):
    """An HLO instruction, parsed from one line of text: `%name = type operation(operand_text), attributes`.

    computation: name of the HLO computation that contains the instruction
    name: name of the result
    type: type of the result, such as "f32[8,128]"
    operation: name of the operation, such as "dot"
    operand_text: text in parentheses after the operation
    attributes: text after the parentheses
    """

    computation: str
    name: str
    type: str
    operation: str
    operand_text: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Return the names of the operands, which are results of instructions in the same HLO computation."""
        return NAME.findall(self.operand_text)

    def attribute(self, name: str) -> list[str]:
        """Return the list of names in an attribute of the instruction: ["a", "b"] for `branch_computations={%a, %b}`.

        Args:
            name: name of the attribute, such as "branch_computations". The result is empty if the instruction lacks it.
        """
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|%[\w.-]+)", self.attributes)
        return NAME.findall(match[1]) if match else []


Computation = dict[str, Instruction]


class ExecutedInstruction(NamedTuple):
    """An HLO instruction that a device executes when it runs the program, with the number of executions.

    instruction: the instruction
    operands: types of the operands, such as "f32[8,128]"
    times: number of executions; an instruction in one of n branches of a conditional counts 1 / n
    """

    instruction: Instruction
    operands: list[str]
    times: float


def executed_instructions(text: str) -> Iterator[ExecutedInstruction]:
    """Yield all instructions that one device executes in a compiled program, with the number of executions.

    Instructions in the body of a loop count once for each iteration. Those in one of n branches of a conditional count
    1 / n times.

    Args:
        text: HLO text of the program.
    """
    computations, entry = _parse(text)

    def walk(name: str, times: float) -> Iterator[ExecutedInstruction]:
        instructions = computations[name]
        for each in instructions.values():
            types = [instructions[operand].type for operand in each.operands if operand in instructions]
            yield ExecutedInstruction(each, types, times)
            for inner, count in _called(each, computations):
                yield from walk(inner, times * count)

    yield from walk(entry, 1)


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """Parse HLO text into `(computations by name, name of the entry computation)`."""
    computations: dict[str, Computation] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif current and (match := LINE.match(line)):
            computations[current][match[1]] = _instruction(current, match[1], match[2])
    return computations, entry


def _instruction(computation: str, name: str, text: str) -> Instruction:
    end = _closing_position(text) if text.startswith("(") else text.index(" ")
    operation, _, rest = text[end:].strip().partition("(")
    inside = _closing_position("(" + rest) - 2
    return Instruction(computation, name, text[:end], operation, rest[:inside], rest[inside + 1 :])


def _closing_position(text: str) -> int:
    """Return the position just after the parenthesis that closes the first opening parenthesis of a text."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    return len(text)


def _called(each: Instruction, computations: dict[str, Computation]) -> Iterator[tuple[str, float]]:
    """Yield pairs `(name of a computation that an instruction calls, number of calls)`."""
    match each.operation:
        case "while":
            yield each.attribute("body")[0], loop_iterations(each, computations)
        case "call":
            yield each.attribute("to_apply")[0], 1
        case "fusion" | "async-start":
            yield each.attribute("calls")[0], 1
        case "conditional":
            branches = each.attribute("branch_computations")
            branches = branches or each.attribute("true_computation") + each.attribute("false_computation")
            yield from ((name, 1 / len(branches)) for name in branches)


def loop_iterations(loop: Instruction, computations: dict[str, Computation]) -> int:
    """Return the number of iterations of an HLO loop (`while`); 1 if the HLO text does not give the number.

    The number is taken from XLA's annotation `known_trip_count`, or else from the constant start and bound of the
    counter.

    Args:
        loop: the HLO instruction `while`.
        computations: all computations of the program, by name.
    """
    if annotation := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(annotation[1])
    condition = computations[loop.attribute("condition")[0]]
    compared = next((each for each in condition.values() if "direction=LT" in each.attributes), None)
    if compared is None:
        return 1
    counter, bound = (condition[name] for name in compared.operands)
    start = _first_count(computations[loop.computation], loop, re.search(r"index=(\d+)", counter.attributes))
    return int(bound.operand_text) - start if bound.operand_text.isdigit() else 1


def _first_count(computation: Computation, loop: Instruction, index: re.Match[str] | None) -> int:
    """Return the initial value of a loop counter; XLA starts above 0 if it moves the first iterations out of the loop.

    Args:
        computation: the computation that holds the loop.
        loop: the HLO instruction `while`.
        index: regex match whose group 1 is the index of the counter in the loop's tuple of values; None if unknown.
    """
    initial = computation[loop.operands[0]]
    if index is None or initial.operation != "tuple":
        return 0
    first = computation[initial.operands[int(index[1])]]
    return int(first.operand_text) if first.operation == "constant" and first.operand_text.isdigit() else 0
