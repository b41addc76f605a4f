"""From a config to its compiled step: the run's own parts and engine, on shapes alone.

No weights are read, and no array of a model's size is made: teachers are shapes with shardings.
"""

import functools
import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxdistill import build, cached, fits, meshes, sources, staged
from jaxdistill.build import Parts
from jaxdistill.data.records import Records
from jaxdistill.errors import ConfigError
from jaxdistill.interrupts import Interrupts
from jaxdistill.parallel.compile import Engine
from jaxdistill.parallel.mesh import AXES
from jaxdistill.parallel.sharding import DEFAULT_RULES, laid_out, shardings
from jaxdistill.plan.device import Device, device
from jaxdistill.plan.flops import Flops, flops
from jaxdistill.plan.topology import Topology
from jaxdistill.train import Around, Data, make_engine
from jaxdistill.types import PyTree, Variables


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


def plan(config: ConfigDict, topology: Topology) -> Plan:
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


def prepared(config: ConfigDict, topology: Topology) -> tuple[Engine, tuple[Variables, ...], Mesh, int]:
    """The run's engine for a topology, its teachers as shapes, its mesh, and how many tokens (or rows) a step has."""
    mesh = _mesh(config, topology)
    described = staged.described(config)
    caches = cached.find(config, described)
    described = {stream: described[stream] for stream in sources.splits(config)}  # one may be named test, too
    found = staged.parts(config, described, mesh, caches)
    fits.check_vocabulary(config, sources.tokenization(config), described["train"].vocabulary)
    shapes = staged.shapes(config, described, caches)
    build.check_used(config, found, shapes["train"])
    meshes.check_kernels(config, mesh)
    frozen = _frozen(config, found, shapes["train"], mesh)
    to_come = Data({}, Records({"index": np.arange(0)}, None), shapes)
    around = Around(to_come, mesh, found, Console(quiet=True), Interrupts())
    engine = make_engine(config, found, frozen, around)
    return engine, frozen, mesh, math.prod(shapes["train"]["mask"].shape)


def _mesh(config: ConfigDict, topology: Topology) -> Mesh:
    if config.mesh.backend != "jit":
        raise ConfigError("mesh.backend", f"{config.mesh.backend!r} is not planned; set 'jit', which pods run.")
    for name in meshes.submeshes(config):
        raise ConfigError(f"teachers.{name}.apart", "a mesh beside the student's is not planned; set it to ''.")
    shape, chips = meshes.check_mesh(config, len(topology.devices)), len(topology.devices)
    if math.prod(shape) != chips:
        said = f"{dict(zip(AXES, shape, strict=True))} takes {math.prod(shape)} of the {chips} chips of {topology.name}"
        raise ConfigError("mesh", f"{said}. Every one must take part; set one size to -1.")
    return meshes.mesh(shape, topology.devices)


def _frozen(config: ConfigDict, found: Parts, rows: Mapping[str, Any], mesh: Mesh) -> tuple[Variables, ...]:
    """The teachers' variables as shapes, each laid out by its own table."""

    def one(name: str, model: Any) -> Variables:
        shapes = Variables(*jax.eval_shape(model.init, jax.eval_shape(functools.partial(jax.random.key, 0)), rows))
        return laid_out(shapes, shardings(shapes, mesh, config.teachers[name].rules or DEFAULT_RULES))

    return tuple(one(*named) for named in zip(found.teacher_names, found.teachers, strict=True))


def _held(engine: Engine, frozen: tuple[Variables, ...], config: ConfigDict) -> dict[str, int]:
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
