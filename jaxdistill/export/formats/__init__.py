"""The formats of exported files, one in each file; importing this package registers them."""

from jaxdistill.export.formats import gguf, litert, onnx, stablehlo  # noqa: F401
