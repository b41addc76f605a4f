"""Compile the training step of a config ahead of time, for devices that this machine need not have.

The program is the one that a run would execute. No weights are read and no array of a model's size is allocated: all
values are shapes with shardings.
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
from jaxdistill.run.plan.device import DeviceWork, device_work
from jaxdistill.run.plan.topology import Topology
from jaxdistill.run.resolve import resolve
from jaxdistill.run.train import References, make_engine


class Plan(NamedTuple):
    """The memory, work and compilation time of a training step that was compiled but not run.

    mesh: sizes of the device mesh, by axis
    tokens: number of tokens (or examples, if the data are not text) in the global batch
    held: bytes on each device for arrays that are kept from step to step, by kind: "student", "optimiser", ...
    temporaries: bytes on each device for arrays that exist only within a step; None if the step does not fit into
        memory
    device: FLOPs and collective operations of one device in a step; None if the step does not fit into memory
    flops: FLOPs of a step over all devices; work that several devices repeat is counted once
    seconds: wall time of "trace" and of "compile", and processor time of both together ("of the processors")
    why: the reason why the step does not fit into memory; empty if it fits
    """

    mesh: dict[str, int]
    tokens: int
    held: dict[str, int]
    temporaries: int | None
    device: DeviceWork | None
    flops: Flops
    seconds: dict[str, float]
    why: str


def plan(config: Config, topology: Topology) -> Plan:
    """Compile the student's training step for given devices, and return its memory, work and compilation time.

    Args:
        config: a complete config.
        topology: the devices to compile for, such as a TPU slice that this machine does not have.

    Raises:
        ConfigError: the config breaks a rule; raised before any compilation.
    """
    engine, frozen, mesh, tokens = prepare(config, topology)
    start, busy = time.perf_counter(), time.process_time()
    assert engine.traced is not None  # the engine is that of jit
    traced = engine.traced()
    seconds, counted = {"trace": time.perf_counter() - start}, flops(traced.jaxpr)
    results: dict[str, Any] = {"temporaries": None, "device": None, "why": ""}
    start = time.perf_counter()
    try:
        compiled = traced.lower().compile()
        memory = compiled.memory_analysis()
        results["temporaries"] = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        results["device"] = device_work(compiled.as_text(), mesh.size)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        results["why"] = _short(str(error))
    seconds |= {"compile": time.perf_counter() - start, "of the processors": time.process_time() - busy}
    return Plan(dict(mesh.shape), tokens, _held(engine, frozen, config), flops=counted, seconds=seconds, **results)


def prepare(config: Config, topology: Topology) -> tuple[Engine, tuple[Variables, ...], Mesh, int]:
    """Prepare the student's training step for compilation, with shapes in place of arrays.

    Args:
        config: a complete config.
        topology: the devices to compile for.

    Returns:
        `(engine, teachers, mesh, tokens)`: the training step with its shardings; the shapes of the teachers' variables;
        the device mesh; and the number of tokens (or examples, if the data are not text) in the global batch.
    """
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
    """Require that the config can be planned: it uses the backend jit and all chips of the topology.

    Raises:
        ConfigError: the config uses another backend, fewer chips, or an option that a plan does not support.
    """
    if config.mesh.backend != "jit":
        raise ConfigError("mesh.backend", f"{config.mesh.backend!r} is not supported by `jaxdistill plan`; set 'jit'.")
    resolved, chips = resolve(config, topology.devices), len(topology.devices)
    for teacher in resolved.teacher_configs.values():
        if lack := teacher.lacks("planning"):
            raise ConfigError(f"{teacher.path}.{lack[0]}", f"{lack[1]}; set it to ''.")
    shape = resolved.mesh.shape
    if math.prod(shape.values()) != chips:
        problem = f"{dict(shape)} uses {math.prod(shape.values())} of the {chips} chips of {topology.name}"
        raise ConfigError("mesh", f"{problem}. A plan needs all chips; set one size to -1.")


def _held(engine: Engine, frozen: tuple[Variables, ...], config: Config) -> dict[str, int]:
    """Return the bytes per device of arrays that are kept from step to step, by kind: "student", "optimiser", ..."""
    ts = engine.abstract
    other_roles = {role: tree for role, tree in ts.params.items() if role != "student"}
    held = {
        "student": bytes_per_device(ts.params["student"]),
        "other parameters": bytes_per_device(other_roles),
        "state": bytes_per_device(ts.state),
        "optimiser": bytes_per_device(ts.opt_state),
    }
    held |= {f"teacher {name}": bytes_per_device(values) for name, values in zip(config.teachers, frozen, strict=True)}
    return {kind: size for kind, size in held.items() if size}


def bytes_per_device(tree: PyTree) -> int:
    """Return the number of bytes that sharded arrays take on each device.

    Args:
        tree: shapes, dtypes and shardings of the arrays, as a tree of `jax.ShapeDtypeStruct`.
    """
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


OUT_OF_MEMORY = (  # XLA's messages about too little memory, for all of it and for temporaries alone
    (r"Used ([\d.]+[KMGT]) of ([\d.]+[KMGT]) hbm", "it needs"),
    (r"HLO temporaries \(([\d.]+[KMGT])\) exceeds available HBM \(([\d.]+[KMGT])\)", "its temporaries need"),
)


def _short(error: str) -> str:
    """Shorten XLA's out-of-memory message, which lists all buffers, to the memory that is needed and available."""
    text = " ".join(error.split())
    for pattern, subject in OUT_OF_MEMORY:
        if match := re.search(pattern, text):
            return f"{subject} {match[1]} of the {match[2]} of a chip's memory"
    return text[:300]
