"""Networks: one family, one file. Adding one is a file here and a line below."""

from jaxdistill.models import mlp, pretrained, resnet, vit

__all__ = ["mlp", "pretrained", "resnet", "vit"]
