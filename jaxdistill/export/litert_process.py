"""Convert a StableHLO program to LiteRT: `python -m jaxdistill.export.litert_process FOLDER NAMES OUTPUT RECIPE`.

The program is FOLDER/model.mlir. A converter or quantizer that fails can end its process, so both run in a process of
their own, which does not import JAX.
"""

import json
import sys
from pathlib import Path

import numpy as np

PROGRAM, SAMPLES, RESULT = "model.mlir", "samples.npz", "model.tflite"


def convert(program: str, names: list[str], output: str) -> bytes:
    """Convert a StableHLO program to LiteRT, and return the content of the file.

    Args:
        program: the program as text.
        names: names of the file's inputs, in the order of the program's arguments.
        output: name of the file's output.
    """
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
    """Quantise a LiteRT file to 8-bit integers, and return the content of the new file.

    Args:
        content: content of the file in floats.
        recipe_name: name of a recipe of `litert_quantizer`, such as `static_wi8_ai8`.
        samples: npz file with calibration records for the ranges of activations; read only if the recipe needs them.
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
    """Convert the StableHLO program in a folder to LiteRT, and write the file beside it."""
    folder, names, output, recipe_name = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
    content = convert((folder / PROGRAM).read_text(encoding="utf-8"), names, output)
    if recipe_name:
        content = quantize(content, recipe_name, folder / SAMPLES)
    (folder / RESULT).write_bytes(content)


if __name__ == "__main__":
    main()
