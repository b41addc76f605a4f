"""LiteRT (TensorFlow Lite), for phones and microcontrollers: ai.google.dev/edge/litert. No TensorFlow is needed."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxdistill.core.errors import ConfigError
from jaxdistill.core.registry import exporters
from jaxdistill.export import litert_process
from jaxdistill.export.litert_process import PROGRAM, RESULT, SAMPLES
from jaxdistill.export.network import Exporter, Network, Rows

RECIPES = {"": "", "dynamic": "dynamic_wi8_afp32", "static": "static_wi8_ai8"}


@exporters.register
def litert(int8: Literal["", "dynamic", "static"] = "") -> Exporter:
    """Write a LiteRT file for phones and microcontrollers, in floats or with 8-bit integers. It takes one row.

    Converted from StableHLO by `litert-converter`; integers are chosen by `litert-quantizer`. Needs the extra `litert`.

    Args:
        int8: empty: floats; `dynamic`: integer kernels, and activations rounded by their range in each call; `static`:
            everything in integers, by ranges on training records, as an NPU wants it; a network with attention masks
            has ranges that no integer holds. A decoder needs `scan_layers=False`: the converter takes no loop.

    Source: LiteRT, github.com/google-ai-edge/LiteRT; Jacob et al., Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference, 2018, arxiv.org/abs/1712.05877.
    """

    def write(network: Network, file: Path, samples: Callable[[], Iterable[Rows]]) -> None:
        names = list(network.inputs)
        flat = jax.jit(lambda *arrays: network.function(dict(zip(names, arrays, strict=True))))
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, PROGRAM).write_text(
                flat.trace(*network.shapes(1).values()).lower().as_text(), encoding="utf-8"
            )
            if int8 == "static":
                batches = list(samples())
                arrays: Any = {name: np.concatenate([x[name] for x in batches]) for name in names}
                np.savez(Path(folder, SAMPLES), **arrays)
            command = (
                sys.executable,
                "-m",
                litert_process.__name__,
                folder,
                json.dumps(names),
                network.output,
                RECIPES[int8],
            )
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if not Path(folder, RESULT).is_file():
                last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
                problem = f"the converter of LiteRT ended with exit code {done.returncode}"
                raise ConfigError("--to", f"{problem}{': ' + last[0][:300] if last else ''}. Try onnx or stablehlo.")
            file.write_bytes(Path(folder, RESULT).read_bytes())

    packages = ("litert_converter", "litert_quantizer") if int8 else ("litert_converter",)
    return Exporter("model.tflite", ("litert",), write, packages, rounds=bool(int8), any_batch=False)
