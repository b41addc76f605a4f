"""Count the work of one device in a compiled program: collectives, and FLOPs of matrix products and convolutions."""

import math
import re
from typing import NamedTuple

import numpy as np

from jaxdistill.run.plan.hlo import ExecutedInstruction, executed_instructions

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+))(?:e\w+)?\[([\d,]*)\]")  # bf16[8,128], f8e4m3fn[8]
WINDOW = re.compile(r"(\w+)=([\dx_-]+)")


class Collective(NamedTuple):
    """The collective operations of one kind, such as all-gather, in a training step.

    times: number of executions in the step
    bytes: bytes that one device sends in the step, if every collective uses a ring algorithm
    """

    times: float = 0
    bytes: float = 0


class DeviceWork(NamedTuple):
    """The work of one device in a training step.

    collectives: number and bytes of the collective operations, by kind, such as "all-gather"
    flops: FLOPs of matrix products and convolutions, including those that other devices compute too
    """

    collectives: dict[str, Collective]
    flops: float


def device_work(text: str, devices: int) -> DeviceWork:
    """Count the FLOPs and the collective operations of one device in a compiled program.

    Args:
        text: HLO text of the compiled program.
        devices: number of devices that run the program.
    """
    collectives: dict[str, Collective] = {}
    flops = 0.0
    for executed in executed_instructions(text):
        kind, times = executed.instruction.operation.removesuffix("-start"), executed.times
        if kind in KINDS:
            if "all-reduce-scatter" in executed.instruction.computation:  # how the TPU compiler writes reduce-scatter
                kind = "reduce-scatter"
            sum_so_far = collectives.get(kind, Collective())
            sent = times * _bytes_sent(kind, executed, devices)
            collectives[kind] = Collective(sum_so_far.times + times, sum_so_far.bytes + sent)
        elif kind == "dot":
            flops += times * _dot_flops(executed)
        elif kind == "convolution":
            flops += times * _convolution_flops(executed)
    return DeviceWork({kind: collectives[kind] for kind in KINDS if kind in collectives}, flops)


def _bytes_sent(kind: str, executed: ExecutedInstruction, devices: int) -> float:
    """Return the bytes that one device sends in a collective operation that uses a ring algorithm.

    Data of other devices that the device passes on are included.

    Args:
        kind: kind of the operation, such as "all-gather".
        executed: the HLO instruction, with the types of its operands.
        devices: number of devices that run the program.
    """
    size = sum(map(array_bytes, executed.operands))
    group = _group_size(executed.instruction.attributes, devices)
    if kind == "collective-permute":
        return size
    if kind == "all-gather":
        return size * (group - 1)
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def array_bytes(type: str) -> float:
    """Return the size in bytes of an HLO type: of an array, such as "bf16[8,128]", or of a tuple of arrays."""
    return sum(math.prod(_sizes(sizes)) * int(bits or 8) / 8 for _, bits, sizes in ARRAY.findall(type))


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _group_size(attributes: str, devices: int) -> int:
    """Return the number of devices in each replica group of a collective, parsed from the instruction's attributes.

    Groups are written as `[2,4]<=[8]` (groups of 4), `{{0,1},{2,3}}`, `mesh['a'=2,'b'=4] {'b'}`, or `{}` (all devices).
    """
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])  # an axis, or a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return match[1].count(",") + 1
    return devices


def _shape(type: str) -> list[int]:
    match = ARRAY.search(type)
    return _sizes(match[3]) if match else []


def _dot_flops(executed: ExecutedInstruction) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", executed.instruction.attributes)
    left = _shape(executed.operands[0])
    terms = math.prod(left[axis] for axis in _sizes(contracted[1])) if contracted else 1
    return 2.0 * math.prod(_shape(executed.instruction.type)) * terms


def _convolution_flops(executed: ExecutedInstruction) -> float:
    """Count the FLOPs of a convolution, excluding products with padding.

    The TPU compiler writes batched matrix products as padded convolutions, whose products with padding are not real
    work.
    """
    attributes, out = executed.instruction.attributes, _shape(executed.instruction.type)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    left, kernel = map(_shape, executed.operands[:2])
    if labels is None:
        return 0.0
    per_output = float(kernel[labels[2].index("i")])
    for axis in filter(str.isdigit, labels[3]):
        size = out[labels[3].index(axis)]
        inputs, kernel_size = left[labels[1].index(axis)], kernel[labels[2].index(axis)]
        per_output *= _products_along(int(axis), size, inputs, kernel_size, attributes) / size
    return 2.0 * math.prod(out) * per_output


def _products_along(axis: int, outputs: int, inputs: int, kernel: int, attributes: str) -> int:
    """Count the multiplications of a convolution along one spatial axis, without those with padding.

    These are the pairs (output position, kernel position) that read an input. Pairs that read padding or a gap of
    dilation are not counted.

    Args:
        axis: number of the spatial axis.
        outputs, inputs, kernel: sizes of output, input and kernel along this axis.
        attributes: attributes of the HLO instruction, with the window of the convolution.
    """
    window = re.search(r"window=\{([^}]*)\}", attributes)
    settings = {key: value.split("x") for key, value in WINDOW.findall(window[1])} if window else {}
    setting = lambda key: int(settings[key][axis]) if key in settings else 1
    padding = int(settings["pad"][axis].split("_")[0]) if "pad" in settings else 0
    positions = np.arange(outputs)[:, None] * setting("stride") + np.arange(kernel) * setting("rhs_dilate") - padding
    dilation = setting("lhs_dilate")
    return int(np.sum((positions >= 0) & (positions <= (inputs - 1) * dilation) & (positions % dilation == 0)))
