"""Shared parts of the benchmarks: build a step, time it, and compare it with PyTorch in a separate process."""

import argparse
import json
import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX is imported, or it allocates the whole GPU
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import jaxdistill.run.parts  # noqa: F401  (registers the parts)
from jaxdistill.compress.quantize import quantize_params, quantized
from jaxdistill.core import registry
from jaxdistill.core.interfaces import Model, Objective
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.types import Variables
from jaxdistill.evaluation.flops import flops
from jaxdistill.models.combinators import in_dtype
from jaxdistill.parallel.compile import shard_variables
from jaxdistill.parallel.mesh import make_mesh

ROOT = Path(__file__).parents[2]


class Work(NamedTuple):
    """A step to time.

    step: runs once, waits, and returns the loss
    flops: of its matrix products
    compiled: the program, which reports the memory that it needs
    """

    step: Callable[[], Any]
    flops: float
    compiled: Any


def parse_arguments(description: str) -> argparse.Namespace:
    """Parse the command line of a benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="cpu", choices=["cpu", "gpu"], help="see sizes.py")
    parser.add_argument(
        "--torch", default="", metavar="PYTHON", help="a Python with torch and transformers; empty: no comparison"
    )
    parser.add_argument("--compile", action="store_true", help="compile the PyTorch step with torch.compile")
    parser.add_argument("--rounds", default=5, type=int, help="rounds, in turns")
    parser.add_argument("--steps", default=3, type=int, help="steps of each in a round")
    parser.add_argument("--chunks", default=0, type=int, help="chunks of a factored head; 0: those of sizes.py")
    parser.add_argument("--out", default="", metavar="FILE", help="write the numbers here, as JSON")
    return parser.parse_args()


def training_step(
    student: Model,
    teacher: Model,
    terms: Mapping[str, tuple[str, float]],
    batch: Mapping[str, Any],
    size: str,
    chunks: int = 1,
    bits: str = "",
    donated: bool = True,
    path: Callable[[Objective], Objective] = lambda minimised: minimised,
) -> Work:
    """Build a whole training step with AdamW.

    The student has float32 parameters and computes in bfloat16 on a GPU. The teacher is frozen, in bfloat16 on a GPU
    and in float32 on a CPU.

    Args:
        student: the model that is trained.
        teacher: the frozen model.
        terms: spec string and weight of each loss term, by name.
        batch: a batch of the stream `train`.
        size: "cpu" or "gpu".
        chunks: number of chunks of the factored heads.
        bits: number format of the teacher, "int8" or "fp8"; empty: its own type.
        donated: whether the step may overwrite its state.
        path: changes the objective, for example how it is differentiated.
    """
    dtype = "bfloat16" if size == "gpu" else "float32"
    student, teacher = (in_dtype(model, dtype) if size == "gpu" else model for model in (student, teacher))
    named = {name: WeightedTerm(registry.losses.build(spec, ""), weight) for name, (spec, weight) in terms.items()}
    update = optimizer(registry.optimizers.build("adamw()", ""), 1e-4, clip_norm=1.0)
    minimised, rows = objective(named, registry.fusions["single"](), chunks), dict(batch)
    mesh = make_mesh((1, 1, 1))
    values = Variables(*jax.jit(teacher.init)(jax.random.key(1), rows))
    values = jax.tree.map(lambda x: x.astype(dtype), values)
    if bits:
        teacher, values = quantized(teacher, bits), values._replace(params=quantize_params(values.params, bits))
    step = registry.steps["offline"](student, (teacher,), path(minimised), update)
    frozen, rows = (shard_variables(values, mesh),), shard_variables({"train": rows}, mesh)
    with jax.set_mesh(mesh):
        state = [jax.jit(step.init)(jax.random.key(0), frozen, rows)]
        traced = jax.jit(step.update, donate_argnums=(0,) if donated else ()).trace(state[0], frozen, rows)
        compiled = traced.lower().compile()

    def run() -> float:
        state[0], metrics = compiled(state[0], frozen, rows)
        jax.block_until_ready(state[0])
        return float(metrics["loss"].compute())

    return Work(run, flops(traced.jaxpr).total, compiled)


def ceiling(size: str) -> float:
    """Measure the FLOP/s of one large matrix product, the best of several."""
    side, kind = (8192, jnp.bfloat16) if size == "gpu" else (2048, jnp.float32)
    a = jnp.ones((side, side), kind)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = min(_milliseconds(lambda: product(a).block_until_ready()) for _ in range(10))
    return 2 * side**3 / best * 1000


Clock = Callable[[], float]


def clock() -> Clock:
    """Return the clock for this backend: wall time on a GPU, processor time on a CPU.

    Other work on the machine changes processor time little.
    """
    return time.process_time if jax.default_backend() == "cpu" else time.perf_counter


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Return the median seconds of each call, timed in turns."""
    seconds_by_name: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds_by_name[name].append(_milliseconds(call, clock) / 1000)
    return {name: statistics.median(seconds) for name, seconds in seconds_by_name.items()}


def _milliseconds(call: Callable[[], Any], clock: Clock = time.perf_counter) -> float:
    start = clock()
    call()
    return 1000 * (clock() - start)


class Peer:
    """The same work in PyTorch, in a separate process that waits while ours runs."""

    def __init__(self, case: str, args: argparse.Namespace):
        command = [args.torch, "-m", "experiments.benchmarks.peer", case, "--size", args.size]
        command += ["--compile"] if args.compile else []
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, text=True)

    def run(self, steps: int) -> dict[str, Any]:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the PyTorch process ended with exit code {self.process.wait()}; its error is above")
        return json.loads(line)


def compare(
    case: str, work: Work, args: argparse.Namespace, beside: Mapping[str, Work] | None = None
) -> dict[str, Any]:
    """Time a step, and others of ours, against PyTorch; print medians, ratios, shares of the ceiling, and memory.

    The ceiling is the speed of one large matrix product.
    """
    works = {"ours": work, **(beside or {})}
    milliseconds: dict[str, list[float]] = {name: [] for name in (*works, "peer")}
    peer, torch_result = Peer(case, args) if args.torch else None, {"ms": []}
    for number in range(args.rounds + 1):
        round_times = {name: [_milliseconds(each.step) for _ in range(args.steps)] for name, each in works.items()}
        torch_result = peer.run(args.steps) if peer else torch_result
        if number:  # the first round compiles and warms up
            for name, ms in {**round_times, "peer": torch_result["ms"]}.items():
                milliseconds[name] += ms
    # read before the ceiling is measured
    device_peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    peak_flops, memory = ceiling(args.size), lambda each: each.compiled.memory_analysis().temp_size_in_bytes / 2**30
    result = {
        "case": case,
        "size": args.size,
        "device": jax.devices()[0].device_kind,
        "load": os.getloadavg()[0],
        "ceiling_gflops": peak_flops / 1e9,
        "gflop": work.flops / 1e9,
        **{name: {"ms": milliseconds[name], "temp_gib": memory(each)} for name, each in works.items()},
        "peer": {**torch_result, "ms": milliseconds["peer"], "compile": args.compile},
    }
    if device_peak and not beside:  # with several steps it would be their joint peak
        result["ours"]["peak_gib"] = device_peak / 2**30
    _show(result, [*works, "peer"])
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1))
    if peer:
        peer.process.stdin.close()
        peer.process.wait()
    return result


def _show(result: Mapping[str, Any], names: Sequence[str]) -> None:
    table = Table(f"{result['case']}, {result['size']}", "ms, median", "quartiles", "% of the ceiling", "GiB")
    medians = {}
    for who in names:
        times = result[who]["ms"]
        if not times:
            continue
        low, medians[who], high = statistics.quantiles(times, n=4)
        share = 100 * result["gflop"] / medians[who] * 1000 / result["ceiling_gflops"]
        peak = result[who].get("peak_gib") or result[who].get("temp_gib")
        memory = f"{peak:.2f}" if peak else "-"
        table.add_row(who, f"{medians[who]:.1f}", f"{low:.1f} to {high:.1f}", f"{share:.0f}", memory)
    Console().print(table)
    for who in medians:
        if who != "ours":
            print(f"ours over {who}: {medians['ours'] / medians[who]:.3f}, load {result['load']:.1f}")
