"""The export formats, one in each module; importing this package registers them."""

from jaxdistill.export.formats import gguf, litert, onnx, stablehlo  # noqa: F401
