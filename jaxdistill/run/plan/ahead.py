"""From a config to its compiled step: the run's own parts and engine, on shapes alone.

No weights are read, and no array of a model's size is made: teachers are shapes with shardings.
"""

import math
import re
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.types import PyTree, Variables
from jaxdistill.evaluation.flops import Flops, flops
from jaxdistill.parallel.compile import Engine
from jaxdistill.run.config import Config
from jaxdistill.run.plan.device import Device, device
from jaxdistill.run.plan.topology import Topology
from jaxdistill.run.resolve import resolve
from jaxdistill.run.train import References, make_engine


class Plan(NamedTuple):
    """What is known of a step before it runs.

    mesh: sizes by axis
    tokens: or rows, of a step
    held: bytes on each device all the time, by kind
    temporaries: bytes on each device while a step runs; None where it does not fit
    device: what one device does in a step; None where it does not fit
    flops: of one step, over all devices, each counted once
    seconds: that tracing and compiling took, and how much of the processor
    why: it does not fit; empty: it does
    """

    mesh: dict[str, int]
    tokens: int
    held: dict[str, int]
    temporaries: int | None
    device: Device | None
    flops: Flops
    seconds: dict[str, float]
    why: str


def plan(config: Config, topology: Topology) -> Plan:
    """Compiles the student's step of a config for a topology.

    Raises:
        ConfigError: for whatever is wrong with the config, before anything compiles.
    """
    engine, frozen, mesh, tokens = prepared(config, topology)
    start, busy = time.perf_counter(), time.process_time()
    assert engine.traced is not None  # of jit
    traced = engine.traced()
    seconds, counted = {"trace": time.perf_counter() - start}, flops(traced.jaxpr)
    found: dict[str, Any] = {"temporaries": None, "device": None, "why": ""}
    start = time.perf_counter()
    try:
        compiled = traced.lower().compile()
        memory = compiled.memory_analysis()
        found["temporaries"] = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        found["device"] = device(compiled.as_text(), mesh.size)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found["why"] = _short(str(error))
    seconds |= {"compile": time.perf_counter() - start, "of the processors": time.process_time() - busy}
    return Plan(dict(mesh.shape), tokens, _held(engine, frozen, config), flops=counted, seconds=seconds, **found)


def prepared(config: Config, topology: Topology) -> tuple[Engine, tuple[Variables, ...], Mesh, int]:
    """The run's engine for a topology, its teachers as shapes, its mesh, and how many tokens (or rows) a step has."""
    _check(config, topology)
    resolved = resolve(config, topology.devices)
    resolved.check_run()
    stage, teachers = resolved.student, resolved.teachers.values()
    rows = stage.shapes["train"]
    frozen = tuple(teacher.abstract(rows) for teacher in teachers)
    references = References(tuple(teacher.model for teacher in teachers), resolved.reference)
    engine = make_engine(stage, frozen, resolved.mesh, references)
    return engine, frozen, resolved.mesh, math.prod(rows["mask"].shape)


def _check(config: Config, topology: Topology) -> None:
    """A plan is of jit over all chips of a topology.

    Raises:
        ConfigError: the config asks for something else.
    """
    if config.mesh.backend != "jit":
        raise ConfigError("mesh.backend", f"{config.mesh.backend!r} is not planned; set 'jit', which pods run.")
    resolved, chips = resolve(config, topology.devices), len(topology.devices)
    for entry in resolved.entries.values():
        if lack := entry.lacks("planning"):
            raise ConfigError(f"{entry.path}.{lack[0]}", f"{lack[1]}; set it to ''.")
    shape = resolved.mesh.shape
    if math.prod(shape.values()) != chips:
        said = f"{dict(shape)} takes {math.prod(shape.values())} of the {chips} chips of {topology.name}"
        raise ConfigError("mesh", f"{said}. Every one must take part; set one size to -1.")


def _held(engine: Engine, frozen: tuple[Variables, ...], config: Config) -> dict[str, int]:
    """Bytes on each device, by kind."""
    ts = engine.abstract
    further = {role: tree for role, tree in ts.params.items() if role != "student"}
    held = {
        "student": share(ts.params["student"]),
        "other parameters": share(further),
        "state": share(ts.state),
        "optimiser": share(ts.opt_state),
    }
    held |= {f"teacher {name}": share(values) for name, values in zip(config.teachers, frozen, strict=True)}
    return {kind: size for kind, size in held.items() if size}


def share(tree: PyTree) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


NEEDS = (  # what XLA says of memory that does not suffice: of all of it, or of temporaries alone
    (r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm", "it needs"),
    (r"HLO temporaries \(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)", "its temporaries need"),
)


def _short(error: str) -> str:
    """What a compiler says of memory that does not suffice, without its listing of buffers."""
    text = " ".join(error.split())
    for pattern, said in NEEDS:
        if found := re.search(pattern, text):
            return f"{said} {found[1]} of the {found[2]} of a chip's memory"
    return text[:300]
