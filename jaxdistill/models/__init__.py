"""Networks: one family, one file. Adding one is a file here and a line below."""

from jaxdistill.models import bert, decoder, mlp, pretrained, resnet, vit

__all__ = ["bert", "decoder", "mlp", "pretrained", "resnet", "vit"]
