"""Which bytes do the terms of a factored head move? python -m experiments.benchmarks.moved [--chips v5e v5p v6e h100]

Value and gradient of terms on 256 rows of 151,936 bfloat16 logits of a student and a teacher, by XLA and by one kernel
(`kernels="pallas"`), and with `--head` the whole pass of `head`. Compiled for chips that are elsewhere: for TPUs by
libtpu (the extra tpu), for an H100 by the packages jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12, whose
folder bin must be on PATH. Nothing runs. XLA moves what its instructions read and write, whole arrays each time, and a
kernel its blocks, on TPUs alone; what caches save is not known.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from jaxdistill.run.plan import topology

topology.before_jax("cpu:1")  # else JAX looks for the TPU that libtpu is for

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

import jaxdistill.run.parts  # noqa: E402, F401  (registers the parts)
from experiments.benchmarks.head import passed, shapes  # noqa: E402
from experiments.benchmarks.sizes import SIZES  # noqa: E402
from jaxdistill.core import jaxpr, registry  # noqa: E402
from jaxdistill.core.kernels.fused import summed  # noqa: E402
from jaxdistill.core.types import Outputs, Signals  # noqa: E402
from jaxdistill.parallel.mesh import make_mesh  # noqa: E402
from jaxdistill.run.plan.device import size_of  # noqa: E402
from jaxdistill.run.plan.hlo import executed  # noqa: E402

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
    """One chip, which need not be here."""
    if chip in TPUS:
        return topology.find(TPUS[chip], 1).devices[:1]
    jax.config.update("jax_enable_compilation_cache", False)
    return topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100).devices


def terms(specs: tuple[str, ...], kernels: str) -> tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]]]:
    """Value and gradient of a sum of terms, and its arguments: logits of the student and of a teacher, labels."""
    built = [registry.losses.build(spec, "") for spec in specs]

    def piece(_: Any, rows: tuple[Any, ...]) -> tuple[Any, Any]:
        student, teacher, label, mask = rows
        out, step = Outputs(teacher), jnp.zeros((), jnp.int32)
        seen = Signals(Outputs(student), (out,), out, {"label": label}, mask, step, jnp.float32(2.0), {})
        values = sum(term.apply({}, {}, seen, key=None)[0] for term in built)
        return jnp.sum(jnp.where(mask != 0, values, 0.0)), ()

    def value(student: Any, *rest: Any) -> Any:
        rows = (student, *rest)
        return (piece((), rows) if kernels == "xla" else summed(piece, VOCABULARY, (), rows))[0]

    def looks(sharding: Any) -> tuple[Any, ...]:
        look = lambda kind, *more: jax.ShapeDtypeStruct((1, ROWS, *more), kind, sharding=sharding)
        logits = look(jnp.bfloat16, VOCABULARY)
        return logits, logits, look(jnp.int32), look(jnp.float32)

    return jax.value_and_grad(value), looks


def head(kernels: str) -> tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]]]:
    """The whole pass of `head`, and its arguments."""
    size = SIZES["head"]["gpu"]
    laid = lambda sharding: jax.tree.map(lambda x: x.update(sharding=sharding), shapes(size, jnp.bfloat16))
    return passed(size["chunks"], kernels), laid


def estimates(program: Any) -> Iterator[float]:
    """Bytes that kernels say they move."""
    for equation in program.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["cost_estimate"].bytes_accessed
        for inner in jaxpr.inner_programs(equation):
            yield from estimates(inner)


def swept(compiled: Any) -> float:
    """Bytes that XLA's instructions read and write."""
    counted = compiled.cost_analysis()
    if counted:
        return counted["bytes accessed"]
    free = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
    every = list(executed(compiled.as_text()))
    whole = (
        x for x in every if x.instruction.home == every[0].instruction.home and x.instruction.operation not in free
    )
    return sum(sum(map(size_of, (each.instruction.type, *each.operands))) for each in whole)


def measured(chip: str, made: tuple[Callable[..., Any], Any], kernels: str) -> tuple[float, float]:
    """Bytes moved for each row and class, and MiB of temporaries."""
    function, shapes = made
    with jax.set_mesh(mesh := make_mesh((1, 1, 1), devices(chip))):
        traced = jax.jit(function).trace(*shapes(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())))
        compiled = traced.lower().compile()
    of_kernel = min(estimates(traced.jaxpr.jaxpr), default=0)
    moved = swept(compiled) if kernels == "xla" else of_kernel
    return moved / (ROWS * VOCABULARY), compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--chips", nargs="+", default=list(TPUS), choices=[*TPUS, "h100"])
    words.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    words.add_argument("--head", action="store_true", help="also the temporaries of the whole pass")
    known = words.parse_args()
    for chip in known.chips:
        for case in known.cases:
            for kernels in ("xla",) if chip == "h100" else ("xla", "pallas"):
                moved, kept = measured(chip, terms(CASES[case], kernels), kernels)
                print(
                    f"{chip}, {case}, {kernels}: {moved:.1f} bytes a logit, {kept:.0f} MiB of temporaries", flush=True
                )
        for kernels in ("xla", "pallas")[: 1 if chip == "h100" else 2] if known.head else ():
            _, kept = measured(chip, head(kernels), kernels)
            print(f"{chip}, head, {kernels}: {kept / 1024:.2f} GiB of temporaries", flush=True)


if __name__ == "__main__":
    main()
