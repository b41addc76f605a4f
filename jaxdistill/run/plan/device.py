"""What one device does in a step, by its compiled program: collectives, and FLOPs of products and convolutions."""

import math
import re
from typing import NamedTuple

import numpy as np

from jaxdistill.run.plan.hlo import Executed, executed

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+))(?:e\w+)?\[([\d,]*)\]")  # bf16[8,128], f8e4m3fn[8]
WINDOW = re.compile(r"(\w+)=([\dx_-]+)")


class Collective(NamedTuple):
    """times: a device takes part in a step. bytes: that it sends then, if all is passed on in a ring."""

    times: float = 0
    bytes: float = 0


class Device(NamedTuple):
    """collectives: by kind. flops: of products and convolutions, those that other devices compute as well included."""

    collectives: dict[str, Collective]
    flops: float


def device(text: str, devices: int) -> Device:
    """What one of so many devices does, from the text of its program."""
    found: dict[str, Collective] = {}
    flops = 0.0
    for each in executed(text):
        kind = each.instruction.operation.removesuffix("-start")
        if kind in KINDS:
            if "all-reduce-scatter" in each.instruction.home:  # the TPU's compiler writes it so, and cuts the sum
                kind = "reduce-scatter"
            before = found.get(kind, Collective())
            found[kind] = Collective(before.times + each.times, before.bytes + each.times * _sent(kind, each, devices))
        elif kind == "dot":
            flops += each.times * _dot(each)
        elif kind == "convolution":
            flops += each.times * _convolution(each)
    return Device({kind: found[kind] for kind in KINDS if kind in found}, flops)


def _sent(kind: str, each: Executed, devices: int) -> float:
    """Bytes that a device sends: its share, and what it passes on of the others'."""
    size, group = sum(map(size_of, each.operands)), _group(each.instruction.more, devices)
    if kind == "collective-permute":
        return size
    if kind == "all-gather":
        return size * (group - 1)
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def size_of(type: str) -> float:
    """Of an array, or of a tuple of arrays."""
    return sum(math.prod(_sizes(sizes)) * int(bits or 8) / 8 for _, bits, sizes in ARRAY.findall(type))


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _group(more: str, devices: int) -> int:
    """How many devices take part together: `[2,4]<=[8]`, `{{0,1},{2,3}}`, `mesh['a'=2,'b'=4] {'b'}`; `{}`: all."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", more):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", more):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])  # an axis, or a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", more):
        return found[1].count(",") + 1
    return devices


def _shape(type: str) -> list[int]:
    found = ARRAY.search(type)
    return _sizes(found[3]) if found else []


def _dot(each: Executed) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.instruction.more)
    left = _shape(each.operands[0])
    over = math.prod(left[axis] for axis in _sizes(contracted[1])) if contracted else 1
    return 2.0 * math.prod(_shape(each.instruction.type)) * over


def _convolution(each: Executed) -> float:
    """Of a convolution, without its products with padding: the TPU's compiler writes products of stacks as such."""
    more, out = each.instruction.more, _shape(each.instruction.type)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", more)
    left, kernel = map(_shape, each.operands[:2])
    if labels is None:
        return 0.0
    per_output = float(kernel[labels[2].index("i")])
    for axis in filter(str.isdigit, labels[3]):
        place = int(axis)
        size = out[labels[3].index(axis)]
        per_output *= _met(place, size, left[labels[1].index(axis)], kernel[labels[2].index(axis)], more) / size
    return 2.0 * math.prod(out) * per_output


def _met(axis: int, outputs: int, inputs: int, kernel: int, more: str) -> int:
    """How many pairs (output, kernel place) along an axis meet an input, and no padding and no hole of a dilation."""
    window = re.search(r"window=\{([^}]*)\}", more)
    given = {key: value.split("x") for key, value in WINDOW.findall(window[1])} if window else {}
    setting = lambda key: int(given[key][axis]) if key in given else 1
    before = int(given["pad"][axis].split("_")[0]) if "pad" in given else 0
    places = np.arange(outputs)[:, None] * setting("stride") + np.arange(kernel) * setting("rhs_dilate") - before
    holes = setting("lhs_dilate")
    return int(np.sum((places >= 0) & (places <= (inputs - 1) * holes) & (places % holes == 0)))
