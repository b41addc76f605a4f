"""The option `quantized`: store and multiply the kernels of a frozen teacher in 8 bits."""

from jaxdistill.compress.quantize import quantized
from jaxdistill.teachers.option import Option

OPTION = Option(
    "quantized",
    lambda teacher, kind, context: teacher.replaced(network=quantized(teacher.network, kind)),
    lacks=lambda kind: dict.fromkeys(("training", "learning", "gradients"), f"{kind} has no gradient"),
)
