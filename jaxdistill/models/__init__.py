"""Networks: one family, one file. Adding one is a file here and a line below."""

from jaxdistill.models import bert, clip, decoder, efficientnet, mlp, pretrained, resnet, resnet_imagenet, vit

__all__ = ["bert", "clip", "decoder", "efficientnet", "mlp", "pretrained", "resnet", "resnet_imagenet", "vit"]
