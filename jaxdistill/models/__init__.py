"""Model families (BERT, CLIP, ...), one file each. To add a family, write a file here and import it below."""

from jaxdistill.models import bert as bert
from jaxdistill.models import clip as clip
from jaxdistill.models import cosine_head as cosine_head
from jaxdistill.models import dcn as dcn
from jaxdistill.models import decoder as decoder
from jaxdistill.models import dinov2 as dinov2
from jaxdistill.models import efficientnet as efficientnet
from jaxdistill.models import gpt2 as gpt2
from jaxdistill.models import mlp as mlp
from jaxdistill.models import modernbert as modernbert
from jaxdistill.models import pretrained as pretrained
from jaxdistill.models import resnet as resnet
from jaxdistill.models import resnet_imagenet as resnet_imagenet
from jaxdistill.models import siamese as siamese
from jaxdistill.models import towers as towers
from jaxdistill.models import vit as vit
