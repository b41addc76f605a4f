"""A plan in words and numbers, with the bounds that a chip's published speed sets."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxdistill.run.plan.ahead import Plan
from jaxdistill.run.plan.topology import Chip, Topology

GIB = 2**30
STATE = ("student", "other parameters", "state", "optimiser")  # what a step writes anew


class Bounds(NamedTuple):
    """Seconds that a step takes at least: for its products, for memory, for the links between chips."""

    products: float
    memory: float
    links: float

    @property
    def best(self) -> float:
        """If the three overlap entirely."""
        return max(self)

    @property
    def worst(self) -> float:
        """If they do not overlap at all, each still at its full speed."""
        return sum(self)


def bounds(plan: Plan, topology: Topology) -> Bounds | None:
    """The roofline of a plan (Williams, Waterman and Patterson, 2009); None where nobody publishes the chip's speed.

    Assumed: a chip's products run at its peak of bfloat16; every byte that is held is read once, the train state
    written once, and temporaries written and read once; a chip sends over all its links at once. Between slices the
    network is slower, which is left out.
    """
    chip = topology.chip
    if chip is None or plan.temporaries is None or plan.device is None:
        return None
    moved = sum(plan.held.values()) + sum(plan.held.get(kind, 0) for kind in STATE) + 2 * plan.temporaries
    sent = sum(each.bytes for each in plan.device.collectives.values())
    return Bounds(plan.device.flops / chip.flops, moved / chip.memory_speed, sent / chip.link_speed)


def numbers(plan: Plan, topology: Topology) -> dict[str, Any]:
    """All of it, for a file."""
    found = bounds(plan, topology)
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
        "bounds": found and found._asdict(),
        "fits": not plan.why,
    }


def text(plan: Plan, topology: Topology, config: str) -> str:
    """What the terminal shows."""
    return "\n".join(_lines(plan, topology, config)) + "\n"


def _lines(plan: Plan, topology: Topology, config: str) -> Iterator[str]:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    yield f"{config} on {topology.name}: {len(topology.devices)} chips, {mesh}; {plan.tokens:,} tokens (or rows) a step"
    total = sum(plan.held.values()) + (plan.temporaries or 0)
    of = f" of {topology.chip.memory / GIB:.0f}" if topology.chip else ""
    yield f"does not fit: {plan.why}" if plan.why else f"fits: {total / GIB:.2f}{of} GiB on each chip"
    yield "\nGiB on each chip"
    held = {**plan.held, **({} if plan.temporaries is None else {"temporaries": plan.temporaries})}
    yield from (f"  {kind:<24}{size / GIB:10.3f}" for kind, size in held.items())
    if plan.device and plan.device.collectives:
        yield "\ncollectives of one chip, a step   count   GiB sent"
        yield from (f"  {k:<20}{c.times:18,.0f}{c.bytes / GIB:11.3f}" for k, c in plan.device.collectives.items())
    yield f"\nFLOPs of a step: {plan.flops.total:.4g}" + _share(plan, topology)
    if topology.chip and (found := bounds(plan, topology)):
        yield from _times(found, plan, topology.chip)
    yield "\n" + ", ".join(f"{what} {seconds:.1f} s" for what, seconds in plan.seconds.items())


def _share(plan: Plan, topology: Topology) -> str:
    """Whether work is done on several chips at once, and what could not be counted."""
    said = f", and {plan.flops.unknown} loops of unknown length, counted once" if plan.flops.unknown else ""
    if plan.device is None:
        return said
    ratio = plan.device.flops * len(topology.devices) / max(plan.flops.total, 1.0)
    return f"{said}; each chip does {plan.device.flops:.4g}, {ratio:.2f} times an even share"


def _times(found: Bounds, plan: Plan, chip: Chip) -> Iterator[str]:
    what = {
        "products": f"what a chip does, at {chip.flops / 1e12:.0f} TFLOP/s",
        "memory": f"held: read once; states: written; temporaries: both; at {chip.memory_speed / 1e9:.0f} GB/s",
        "links": f"what a chip sends, at {chip.link_speed / 1e9:.0f} GB/s over all its links",
    }
    yield "\na step takes at least (bounds, not measured)"
    yield from (f"  {part:<9}{getattr(found, part):10.3f} s   {how}" for part, how in what.items())
    for seconds, case in ((found.best, "if they overlap"), (found.worst, "if they do not")):
        share = plan.flops.total / math.prod(plan.mesh.values()) / chip.flops / seconds
        yield f"  {case}: {seconds:.3f} s, {plan.tokens / seconds:,.0f} tokens/s, {100 * share:.0f} % of the peak"
