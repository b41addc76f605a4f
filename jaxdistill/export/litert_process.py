"""Convert a StableHLO program to LiteRT: `python -m jaxdistill.export.litert_process FOLDER NAMES OUTPUT RECIPE`.

The program is FOLDER/model.mlir. Converter and quantizer end the process where they fail, so they have their own, which
imports no JAX.
"""

import json
import sys
from pathlib import Path

import numpy as np

PROGRAM, SAMPLES, RESULT = "model.mlir", "samples.npz", "model.tflite"


def convert(program: str, names: list[str], output: str) -> bytes:
    """Return a StableHLO program as the content of a LiteRT file, whose inputs and output have these names."""
    from litert_converter import converter_api_ext as api
    from litert_converter.mlir import ir, passmanager

    context = ir.Context()
    api.prepare_mlir_context(context)
    with context, ir.Location.unknown():
        module = ir.Module.parse(program)
        api.set_signature(module.operation, "serving_default", names, [output])
        passes = passmanager.PassManager.parse("builtin.module()")
        api.run_convert_to_tfl_passes(module, passes, api.ConvertToTFLConfig())
        return bytes(api.export_flatbuffer_to_bytes(module.operation))


def quantize(content: bytes, recipe_name: str, samples: Path) -> bytes:
    """Return a LiteRT file in integers.

    Args:
        content: the file in floats.
        recipe_name: name of a recipe of `litert_quantizer`.
        samples: npz file with records for the ranges of activations; read if the recipe needs them.
    """
    from litert_quantizer import quantizer, recipe

    made = quantizer.Quantizer(content)
    made.load_quantization_recipe(getattr(recipe, recipe_name)())
    ranges = None
    if made.need_calibration:
        with np.load(samples) as arrays:
            columns = dict(arrays)
        count = len(next(iter(columns.values())))
        rows = [{name: x[number : number + 1] for name, x in columns.items()} for number in range(count)]
        ranges = made.calibrate({"serving_default": rows})
    return bytes(made.quantize(ranges, enable_progress_report=False).quantized_model)


def main() -> None:
    """Convert the program in a folder, and write the file beside it."""
    folder, names, output, recipe_name = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
    content = convert((folder / PROGRAM).read_text(encoding="utf-8"), names, output)
    if recipe_name:
        content = quantize(content, recipe_name, folder / SAMPLES)
    (folder / RESULT).write_bytes(content)


if __name__ == "__main__":
    main()
