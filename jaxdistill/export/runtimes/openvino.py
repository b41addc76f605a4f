"""Run an ONNX graph with OpenVINO, on the CPU: docs.openvino.ai."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

PACKAGE = "openvino"


def open_file(file: Path, threads: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load an ONNX graph, and return the function that it computes, `{input: [rows, ...]} -> output [rows, ...]`.

    OpenVINO computes in float32, also on processors with bfloat16.

    Args:
        file: the ONNX file.
        threads: number of threads.
    """
    import openvino

    core = openvino.Core()
    # without the hint, it computes in bfloat16 where the processor has it
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(str(file)), "CPU", settings).create_infer_request()

    def run(rows: Mapping[str, np.ndarray]) -> np.ndarray:
        (output,) = request.infer(dict(rows)).values()
        return np.array(output)  # the request reuses its memory

    return run
