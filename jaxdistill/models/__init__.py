"""Networks: one family, one file. Adding one is a file here and a line below."""

from jaxdistill.models import efficientnet, mlp, resnet, vit

__all__ = ["efficientnet", "mlp", "resnet", "vit"]
