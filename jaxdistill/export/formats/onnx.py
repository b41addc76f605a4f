"""ONNX, which ONNX Runtime, OpenVINO and many others run: onnx.ai."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from jaxdistill.core.registry import exporters
from jaxdistill.export.formats.onnx_graph import onnx_model
from jaxdistill.export.network import Exporter, Network, Rows

SMALL_ENOUGH = 1.5e9  # bytes; a file of protocol buffers holds 2 GB at most
PRODUCTS = ["Conv", "Gather", "MatMul"]  # what is computed in integers; sums and softmax stay floats


@exporters.register
def onnx(int8: Literal["", "dynamic", "static"] = "") -> Exporter:
    """Write an ONNX graph for ONNX Runtime and OpenVINO, in floats or quantised to 8-bit integers.

    The graph takes any number of rows. It is converted from the trace of the model operation by operation, so that it
    computes the same. ONNX Runtime's own quantizer rounds the kernels: symmetric, with a scale for each output of a
    kernel. Needs the extra `onnx`.

    Args:
        int8: empty for floats. `dynamic` quantises the kernels, and activations by their range in each batch. `static`
            quantises the kernels, and activations by their range on training records.

    Source: Open Neural Network Exchange, github.com/onnx/onnx; Jacob et al., Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference, 2018, arxiv.org/abs/1712.05877.
    """

    def write(network: Network, file: Path, samples: Callable[[], Iterable[Rows]]) -> None:
        model = onnx_model(network)
        too_large = sum(x.nbytes for x in network.variables.params.values()) > SMALL_ENOUGH
        if not int8:
            _save(model, file, too_large)
            return
        with tempfile.TemporaryDirectory() as folder:
            floats = Path(folder, "floats.onnx")
            _save(model, floats, too_large)
            _quantize(floats, file, int8, samples, too_large)

    packages = ("onnx", "onnxruntime") if int8 else ("onnx",)
    return Exporter("model.onnx", ("onnxruntime", "openvino"), write, packages, bool(int8), 8 if int8 else 32)


def _save(model: Any, file: Path, too_large: bool) -> None:
    import onnx as library

    if too_large:
        library.save(model, file, save_as_external_data=True, location=f"{file.name}.data")
    else:
        library.save(model, file)


def _quantize(floats: Path, file: Path, int8: str, samples: Callable[[], Iterable[Rows]], too_large: bool) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(samples())

        def get_next(self) -> Any:
            return next(self._batches, None)

    options = {"per_channel": True, "weight_type": QuantType.QInt8, "use_external_data_format": too_large}
    if int8 == "dynamic":
        quantize_dynamic(floats, file, op_types_to_quantize=PRODUCTS, **options)
        return
    quantize_static(
        floats,
        file,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=PRODUCTS,
        activation_type=QuantType.QUInt8,
        **options,
    )
