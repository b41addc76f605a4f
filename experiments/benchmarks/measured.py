"""What the benchmarks share: our step on one device, its peer in a process of its own, both in turns."""

import argparse
import json
import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX: else all of a GPU is ours
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
from jaxdistill.compress.quantize import narrowed, quantized
from jaxdistill.core import registry
from jaxdistill.core.objective import Weighted, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.types import Model, Objective, Variables
from jaxdistill.evaluation.flops import flops
from jaxdistill.models.combinators import in_dtype
from jaxdistill.parallel.compile import place
from jaxdistill.parallel.mesh import make_mesh

ROOT = Path(__file__).parents[2]


class Work(NamedTuple):
    """What is timed.

    step: does it once, waits, and gives its loss
    flops: of its products
    compiled: the program, which knows what memory it needs
    """

    step: Callable[[], Any]
    flops: float
    compiled: Any


def told(text: str) -> argparse.Namespace:
    """The words of a benchmark's command line."""
    words = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--size", default="cpu", choices=["cpu", "gpu"], help="see sizes.py")
    words.add_argument(
        "--torch", default="", metavar="PYTHON", help="one that has torch and transformers; empty: alone"
    )
    words.add_argument("--compile", action="store_true", help="the peer by torch.compile")
    words.add_argument("--rounds", default=5, type=int, help="in turns")
    words.add_argument("--steps", default=3, type=int, help="of each in a round")
    words.add_argument("--out", default="", metavar="FILE", help="for the numbers, as JSON")
    return words.parse_args()


def learning(
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
    """A whole step by AdamW: a student in float32 that computes in bfloat16 on a GPU, a frozen teacher in that type.

    Args:
        student, teacher: models.
        terms: what is minimised, by name, with its weight.
        batch: of the stream `train`.
        size: "cpu" or "gpu".
        chunks: of the factored heads.
        bits: of the teacher, "int8" or "fp8"; empty: its own type.
        donated: the step may overwrite its state.
        path: changes the objective, such as how it is differentiated.
    """
    dtype = "bfloat16" if size == "gpu" else "float32"
    student, teacher = (in_dtype(model, dtype) if size == "gpu" else model for model in (student, teacher))
    named = {name: Weighted(registry.losses.build(spec, ""), weight) for name, (spec, weight) in terms.items()}
    update = optimizer(registry.optimizers.build("adamw()", ""), 1e-4, clip_norm=1.0)
    minimised, rows = objective(named, registry.fusions["single"](), chunks), dict(batch)
    mesh = make_mesh((1, 1, 1))
    values = Variables(*jax.jit(teacher.init)(jax.random.key(1), rows))
    values = jax.tree.map(lambda x: x.astype(dtype), values)
    if bits:
        teacher, values = quantized(teacher, bits), values._replace(params=narrowed(values.params, bits))
    step = registry.steps["offline"](student, (teacher,), path(minimised), update)
    frozen, rows = (place(values, mesh),), place({"train": rows}, mesh)
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
    """FLOPs a second of one large product, the best of some."""
    side, kind = (8192, jnp.bfloat16) if size == "gpu" else (2048, jnp.float32)
    a = jnp.ones((side, side), kind)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = min(_milliseconds(lambda: product(a).block_until_ready()) for _ in range(10))
    return 2 * side**3 / best * 1000


Clock = Callable[[], float]


def clock() -> Clock:
    """Of a GPU the wall's; of a CPU that of the process's threads, which others who use the machine change little."""
    return time.process_time if jax.default_backend() == "cpu" else time.perf_counter


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Median seconds of each call, in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(_milliseconds(call, clock) / 1000)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def _milliseconds(call: Callable[[], Any], clock: Clock = time.perf_counter) -> float:
    start = clock()
    call()
    return 1000 * (clock() - start)


class Peer:
    """The same work in PyTorch, in a process that waits while ours runs."""

    def __init__(self, case: str, known: argparse.Namespace):
        command = [known.torch, "-m", "experiments.benchmarks.peer", case, "--size", known.size]
        command += ["--compile"] if known.compile else []
        variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, text=True)

    def run(self, steps: int) -> dict[str, Any]:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with {self.process.wait()}")
        return json.loads(line)


def compare(
    case: str, work: Work, known: argparse.Namespace, beside: Mapping[str, Work] | None = None
) -> dict[str, Any]:
    """Times a work, and others of ours, beside its peer; prints medians, ratios, shares of the ceiling, and memory."""
    works = {"ours": work, **(beside or {})}
    took: dict[str, list[float]] = {name: [] for name in (*works, "peer")}
    peer, said = Peer(case, known) if known.torch else None, {"ms": []}
    for number in range(known.rounds + 1):
        turn = {name: [_milliseconds(each.step) for _ in range(known.steps)] for name, each in works.items()}
        said = peer.run(known.steps) if peer else said
        if number:  # the first compiles, and warms up
            for name, ms in {**turn, "peer": said["ms"]}.items():
                took[name] += ms
    on_device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")  # before the ceiling's products
    most, memory = ceiling(known.size), lambda each: each.compiled.memory_analysis().temp_size_in_bytes / 2**30
    found = {
        "case": case,
        "size": known.size,
        "device": jax.devices()[0].device_kind,
        "load": os.getloadavg()[0],
        "ceiling_gflops": most / 1e9,
        "gflop": work.flops / 1e9,
        **{name: {"ms": took[name], "temp_gib": memory(each)} for name, each in works.items()},
        "peer": {**said, "ms": took["peer"], "compile": known.compile},
    }
    if on_device and not beside:  # else it is the peak of several
        found["ours"]["peak_gib"] = on_device / 2**30
    _show(found, [*works, "peer"])
    if known.out:
        Path(known.out).write_text(json.dumps(found, indent=1))
    if peer:
        peer.process.stdin.close()
        peer.process.wait()
    return found


def _show(found: Mapping[str, Any], names: Sequence[str]) -> None:
    table = Table(f"{found['case']}, {found['size']}", "ms, median", "quartiles", "% of the ceiling", "GiB")
    middle = {}
    for who in names:
        took = found[who]["ms"]
        if not took:
            continue
        low, middle[who], high = statistics.quantiles(took, n=4)
        share = 100 * found["gflop"] / middle[who] * 1000 / found["ceiling_gflops"]
        peak = found[who].get("peak_gib") or found[who].get("temp_gib")
        memory = f"{peak:.2f}" if peak else "-"
        table.add_row(who, f"{middle[who]:.1f}", f"{low:.1f} to {high:.1f}", f"{share:.0f}", memory)
    Console().print(table)
    for who in middle:
        if who != "ours":
            print(f"ours over {who}: {middle['ours'] / middle[who]:.3f}, load {found['load']:.1f}")
