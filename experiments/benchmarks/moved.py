"""Count the bytes that loss terms move: python -m experiments.benchmarks.moved [--chips v5e v5p v6e h100]

Compiles the value and gradient of loss terms on 256 rows of 151,936 bfloat16 logits of a student and a teacher, with
XLA and with one kernel (`kernels="pallas"`), and with `--head` the whole pass of `head`. It compiles for chips that are
not present: for TPUs with libtpu (the extra tpu), for an H100 with the packages jax-cuda12-plugin, jax-cuda12-pjrt and
nvidia-cuda-nvcc-cu12, whose folder bin must be on PATH. Nothing runs. The bytes of XLA are what its instructions read
and write, whole arrays each time. The bytes of a kernel, on TPUs alone, are its blocks. Savings by hardware caches are
not counted.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from jaxdistill.run.plan import topology

topology.configure_environment("cpu:1")  # or JAX searches for a TPU, because libtpu is installed

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

import jaxdistill.run.parts  # noqa: E402, F401  (registers the parts)
from experiments.benchmarks.head import loss_and_gradient, shapes  # noqa: E402
from experiments.benchmarks.sizes import SIZES  # noqa: E402
from jaxdistill.core import jaxpr, registry  # noqa: E402
from jaxdistill.core.kernels.fused import sum_over_rows  # noqa: E402
from jaxdistill.core.types import Outputs, Signals  # noqa: E402
from jaxdistill.parallel.mesh import make_mesh  # noqa: E402
from jaxdistill.run.plan.device import array_bytes  # noqa: E402
from jaxdistill.run.plan.hlo import executed_instructions  # noqa: E402

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
ROWS, VOCABULARY = 256, 151_936
FIVE = ("kd", "reverse_kl", "jsd(beta=0.3)", "skew_kl", "cross_entropy")
CASES = {"forward KL": FIVE[:1], "reverse KL": FIVE[1:2], "Jensen-Shannon": FIVE[2:3], "five terms, summed": FIVE}
H100 = """
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84942979072
}
"""


def devices(chip: str) -> list[Any]:
    """Describe one chip, which need not be present."""
    if chip in TPUS:
        return topology.find(TPUS[chip], 1).devices[:1]
    jax.config.update("jax_enable_compilation_cache", False)
    return topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100).devices


def terms(specs: tuple[str, ...], kernels: str) -> tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]]]:
    """Build the value and gradient of a sum of terms, and the shapes of its arguments.

    The arguments are logits of the student and of a teacher, labels and a mask.
    """
    built = [registry.losses.build(spec, "") for spec in specs]

    def chunk(_: Any, rows: tuple[Any, ...]) -> tuple[Any, Any]:
        student, teacher, label, mask = rows
        out, step = Outputs(teacher), jnp.zeros((), jnp.int32)
        signals = Signals(Outputs(student), (out,), out, {"label": label}, mask, step, jnp.float32(2.0), {})
        values = sum(term.apply({}, {}, signals, key=None)[0] for term in built)
        return jnp.sum(jnp.where(mask != 0, values, 0.0)), ()

    def value(student: Any, *rest: Any) -> Any:
        rows = (student, *rest)
        return (chunk((), rows) if kernels == "xla" else sum_over_rows(chunk, VOCABULARY, (), rows))[0]

    def argument_shapes(sharding: Any) -> tuple[Any, ...]:
        shape_of = lambda kind, *more: jax.ShapeDtypeStruct((1, ROWS, *more), kind, sharding=sharding)
        logits = shape_of(jnp.bfloat16, VOCABULARY)
        return logits, logits, shape_of(jnp.int32), shape_of(jnp.float32)

    return jax.value_and_grad(value), argument_shapes


def head(kernels: str) -> tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]]]:
    """Build the whole pass of `head`, and the shapes of its arguments."""
    size = SIZES["head"]["gpu"]
    placed_shapes = lambda sharding: jax.tree.map(lambda x: x.update(sharding=sharding), shapes(size, jnp.bfloat16))
    return loss_and_gradient(size["chunks"], kernels), placed_shapes


def kernel_bytes(program: Any) -> Iterator[float]:
    """Yield the bytes that each Pallas kernel reports to move."""
    for equation in program.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["cost_estimate"].bytes_accessed
        for inner in jaxpr.inner_programs(equation):
            yield from kernel_bytes(inner)


def xla_bytes(compiled: Any) -> float:
    """Count the bytes that XLA's instructions read and write."""
    counted = compiled.cost_analysis()
    if counted:
        return counted["bytes accessed"]
    free = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
    every = list(executed_instructions(compiled.as_text()))
    program = every[0].instruction.computation
    whole = (x for x in every if x.instruction.computation == program and x.instruction.operation not in free)
    return sum(sum(map(array_bytes, (each.instruction.type, *each.operands))) for each in whole)


def measure(chip: str, made: tuple[Callable[..., Any], Any], kernels: str) -> tuple[float, float]:
    """Return the bytes moved for each row and class, and the MiB of temporaries."""
    function, shapes = made
    with jax.set_mesh(mesh := make_mesh((1, 1, 1), devices(chip))):
        traced = jax.jit(function).trace(*shapes(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())))
        compiled = traced.lower().compile()
    by_kernel = min(kernel_bytes(traced.jaxpr.jaxpr), default=0)
    moved = xla_bytes(compiled) if kernels == "xla" else by_kernel
    return moved / (ROWS * VOCABULARY), compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", default=list(TPUS), choices=[*TPUS, "h100"])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--head", action="store_true", help="also print the temporaries of the whole pass")
    args = parser.parse_args()
    for chip in args.chips:
        for case in args.cases:
            for kernels in ("xla",) if chip == "h100" else ("xla", "pallas"):
                moved, temporaries = measure(chip, terms(CASES[case], kernels), kernels)
                print(
                    f"{chip}, {case}, {kernels}: {moved:.1f} bytes a logit, {temporaries:.0f} MiB of temporaries",
                    flush=True,
                )
        for kernels in ("xla", "pallas")[: 1 if chip == "h100" else 2] if args.head else ():
            _, temporaries = measure(chip, head(kernels), kernels)
            print(f"{chip}, head, {kernels}: {temporaries / 1024:.2f} GiB of temporaries", flush=True)


if __name__ == "__main__":
    main()
