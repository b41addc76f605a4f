"""Networks: one family, one file. Adding one is a file here and a line below."""

from jaxdistill.models import mlp, resnet, vit

__all__ = ["mlp", "resnet", "vit"]
