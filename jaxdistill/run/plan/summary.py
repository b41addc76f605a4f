"""Print a plan as text and as JSON, with time bounds from the published speed of a chip."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxdistill.run.plan.ahead import Plan
from jaxdistill.run.plan.topology import Chip, Topology

GIB = 2**30
TRAIN_STATE = ("student", "other parameters", "state", "optimiser")  # kinds of memory that a step writes


class Bounds(NamedTuple):
    """Lower bounds of the time of a training step, in seconds, one for each resource of a chip.

    products: time of the matrix products and convolutions
    memory: time of reading and writing HBM
    links: time of sending data to other chips
    """

    products: float
    memory: float
    links: float

    @property
    def best(self) -> float:
        """Return the lower bound if work of all three resources overlaps: `max(products, memory, links)`, seconds."""
        return max(self)

    @property
    def worst(self) -> float:
        """Return the lower bound if work of the resources never overlaps: `products + memory + links`, seconds."""
        return sum(self)


def bounds(plan: Plan, topology: Topology) -> Bounds | None:
    """Compute lower bounds of a step's time from a roofline model (Williams, Waterman and Patterson, 2009).

        products = FLOPs / bfloat16 peak
        memory   = (kept bytes + bytes of the train state + 2 * bytes of temporaries) / HBM speed
        links    = bytes sent / speed of all links together

    All values are those of one chip. Kept bytes (such as parameters and teachers) are read once; the train state is
    also written once; temporaries are written and read once. The slower network between slices is not considered.

    Args:
        plan: memory and work of the compiled step.
        topology: the devices, with the published speed of their chip.

    Returns:
        The bounds; None if the chip's speed is not known, or the step does not fit into memory.
    """
    chip = topology.chip
    if chip is None or plan.temporaries is None or plan.device is None:
        return None
    moved = sum(plan.held.values()) + sum(plan.held.get(kind, 0) for kind in TRAIN_STATE) + 2 * plan.temporaries
    sent = sum(each.bytes for each in plan.device.collectives.values())
    return Bounds(plan.device.flops / chip.flops, moved / chip.memory_speed, sent / chip.link_speed)


def numbers(plan: Plan, topology: Topology) -> dict[str, Any]:
    """Return a plan (a training step compiled but not run) as a dict for JSON: memory, FLOPs, bytes, time bounds."""
    limits = bounds(plan, topology)
    return {
        **plan._asdict(),
        "topology": topology.name,
        "chips": len(topology.devices),
        "flops": plan.flops._asdict(),
        "device": plan.device
        and {
            "flops": plan.device.flops,
            "collectives": {kind: each._asdict() for kind, each in plan.device.collectives.items()},
        },
        "bounds": limits and limits._asdict(),
        "fits": not plan.why,
    }


def text(plan: Plan, topology: Topology, config: str) -> str:
    """Format the memory, work and time bounds of a compiled training step as text for the terminal.

    Args:
        plan: memory and work of the compiled step.
        topology: the devices that the step was compiled for.
        config: the value of `--config`, for the heading.
    """
    return "\n".join(_lines(plan, topology, config)) + "\n"


def _lines(plan: Plan, topology: Topology, config: str) -> Iterator[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    chips = len(topology.devices)
    yield f"{config} on {topology.name}: {chips} chips, {mesh}; {plan.tokens:,} tokens (or rows) per step"
    total = sum(plan.held.values()) + (plan.temporaries or 0)
    available = f" of {topology.chip.memory / GIB:.0f}" if topology.chip else ""
    yield f"does not fit: {plan.why}" if plan.why else f"fits: {total / GIB:.2f}{available} GiB on each chip"
    yield "\nGiB on each chip"
    held = {**plan.held, **({} if plan.temporaries is None else {"temporaries": plan.temporaries})}
    yield from (f"  {kind:<24}{size / GIB:10.3f}" for kind, size in held.items())
    if plan.device and plan.device.collectives:
        yield "\ncollectives of one chip per step  count   GiB sent"
        yield from (f"  {k:<20}{c.times:18,.0f}{c.bytes / GIB:11.3f}" for k, c in plan.device.collectives.items())
    yield f"\nFLOPs of a step: {plan.flops.total:.4g}" + _flops_per_chip(plan, topology)
    if topology.chip and (limits := bounds(plan, topology)):
        yield from _times(limits, plan, topology.chip)
    yield "\n" + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in plan.seconds.items())


def _flops_per_chip(plan: Plan, topology: Topology) -> str:
    """Compare one chip's FLOPs with an even share of all FLOPs, as text; a ratio above 1 means repeated work."""
    unknown = f", and {plan.flops.unknown} loops of unknown length, counted once" if plan.flops.unknown else ""
    if plan.device is None:
        return unknown
    ratio = plan.device.flops * len(topology.devices) / max(plan.flops.total, 1.0)
    return f"{unknown}; each chip does {plan.device.flops:.4g}, {ratio:.2f} times an even share"


def _times(limits: Bounds, plan: Plan, chip: Chip) -> Iterator[str]:
    explanations = {
        "products": f"the FLOPs of a chip at {chip.flops / 1e12:.0f} TFLOP/s",
        "memory": f"read all memory, write train state and temporaries, at {chip.memory_speed / 1e9:.0f} GB/s",
        "links": f"the bytes that a chip sends, at {chip.link_speed / 1e9:.0f} GB/s over all its links",
    }
    yield "\nlower bounds of the time of a step (not measured)"
    yield from (
        f"  {part:<9}{getattr(limits, part):10.3f} s   {explanation}" for part, explanation in explanations.items()
    )
    for seconds, case in ((limits.best, "if all three overlap"), (limits.worst, "if none overlap")):
        share = plan.flops.total / math.prod(plan.mesh.values()) / chip.flops / seconds
        yield f"  {case}: {seconds:.3f} s, {plan.tokens / seconds:,.0f} tokens/s, {100 * share:.0f} % of the peak"
