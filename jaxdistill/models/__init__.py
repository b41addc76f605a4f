"""Networks: one family, one file. Adding one is a file here and a line below."""

from jaxdistill.models import decoder, mlp, resnet, vit

__all__ = ["decoder", "mlp", "resnet", "vit"]
