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
from jaxdistill.export.integer_forms import for_integers
from jaxdistill.export.litert_process import PROGRAM, RESULT, SAMPLES
from jaxdistill.export.network import Exporter, Network, Rows

RECIPES = {"": "", "dynamic": "dynamic_wi8_afp32", "static": "static_wi8_ai8"}


@exporters.register
def litert(int8: Literal["", "dynamic", "static"] = "") -> Exporter:
    """Write a LiteRT (TensorFlow Lite) file, in float32 or quantised to 8-bit integers.

    The file takes one example at a time. It is converted from StableHLO by `litert-converter`, and quantised by
    `litert-quantizer`. Needs the extra `litert`.

    Args:
        int8: empty for floats. `dynamic` quantises the kernels, and activations by their range in each call. `static`
            computes everything in integers, as NPUs need it, by ranges on training records, with GELU by tanh and
            finite attention masks (`export/integer_forms.py`).

    A decoder needs `scan_layers=False`, because the converter takes no loop.

    Source: LiteRT, github.com/google-ai-edge/LiteRT; Jacob et al., Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference, 2018, arxiv.org/abs/1712.05877.
    """

    def write(network: Network, file: Path, samples: Callable[[], Iterable[Rows]]) -> list[str]:
        names, is_static = list(network.inputs), int8 == "static"
        pixels = [name for name, (_, dtype) in network.inputs.items() if dtype == "uint8"] if is_static else []
        shapes = dict(network.shapes(1))
        shapes |= {name: jax.ShapeDtypeStruct(shapes[name].shape, np.float32) for name in pixels}
        function = for_integers(network) if is_static else network.function
        flat = jax.jit(lambda *arrays: function(dict(zip(names, arrays, strict=True))))
        with tempfile.TemporaryDirectory() as folder:
            program = flat.trace(*shapes.values()).lower().as_text(debug_info=is_static)  # names of layers
            Path(folder, PROGRAM).write_text(program, encoding="utf-8")
            if is_static:
                batches = list(samples())
                if not batches:
                    raise ConfigError("--to", "int8='static' needs training records for its ranges; there are none.")
                arrays: Any = {name: np.concatenate([x[name] for x in batches]) for name in names}
                arrays |= {name: np.float32(arrays[name]) for name in pixels}
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
        return [f"the file reads {name} as 8-bit integers, by its own scale and zero point" for name in pixels]

    packages = ("litert_converter", "litert_quantizer") if int8 else ("litert_converter",)
    return Exporter(
        "model.tflite", ("litert",), write, packages, rounds=bool(int8), bits=8 if int8 else 32, any_batch=False
    )
