"""Run a LiteRT (TensorFlow Lite) file on the CPU: ai.google.dev/edge/litert."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

PACKAGE = "ai_edge_litert"


def open_file(file: Path, threads: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Load a LiteRT file, and return the function that it computes, `{input: [1, ...]} -> output [1, ...]`.

    If the file has quantised inputs or a quantised output, floats are converted by their scales and zero points.

    Args:
        file: the LiteRT file, which takes one row.
        threads: number of threads.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=threads)
    interpreter.allocate_tensors()
    (output,) = interpreter.get_output_details()
    inputs = {details["name"].removeprefix("serving_default_").partition(":")[0]: details
              for details in interpreter.get_input_details()}  # fmt: skip

    def run(rows: Mapping[str, np.ndarray]) -> np.ndarray:
        for name, details in inputs.items():
            interpreter.set_tensor(details["index"], _as_integers(rows[name], details))
        interpreter.invoke()
        output_array = interpreter.get_tensor(output["index"])
        scale, zero = output["quantization"]
        return (output_array.astype(np.float32) - zero) * np.float32(scale) if scale else output_array

    return run


def _as_integers(x: np.ndarray, details: Mapping) -> np.ndarray:
    """Quantise an input by the file's scale and zero point; an input that needs no conversion is returned unchanged."""
    (scale, zero), dtype = details["quantization"], details["dtype"]
    if not scale or x.dtype == dtype:
        return x
    limits = np.iinfo(dtype)
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(dtype)
