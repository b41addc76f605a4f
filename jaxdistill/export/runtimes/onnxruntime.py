"""Run an ONNX graph with ONNX Runtime, on the CPU: onnxruntime.ai."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

PACKAGE = "onnxruntime"


def open_file(file: Path, threads: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load an ONNX graph, and return the function that it computes, `{input: [rows, ...]} -> output [rows, ...]`.

    Args:
        file: the ONNX file.
        threads: number of threads.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(rows: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(None, dict(rows))[0])

    return run
