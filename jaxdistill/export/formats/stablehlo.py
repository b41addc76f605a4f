"""StableHLO, the language of XLA: a program for CPU, GPU and TPU, which `jax.export` writes and reads.

docs.jax.dev/en/latest/export/export.html. Later releases of JAX read a file for at least six months.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import jax
from jax import export

from jaxdistill.core.registry import exporters
from jaxdistill.export.network import Exporter, Network, Rows, any_number

PLATFORMS = ("cpu", "cuda", "tpu")


@exporters.register
def stablehlo() -> Exporter:
    """Write a StableHLO program (the language of XLA) with the weights inside, which JAX runs on CPU, GPU and TPU.

    The program takes any number of rows. Needs the extra `stablehlo`.

    Source: StableHLO, github.com/openxla/stablehlo.
    """

    def write(network: Network, file: Path, samples: Callable[[], Iterable[Rows]]) -> None:
        exported = export.export(jax.jit(network.function), platforms=PLATFORMS)(network.shapes(any_number()))
        file.write_bytes(exported.serialize())

    return Exporter("model.stablehlo", ("jax",), write, ("flatbuffers",))
