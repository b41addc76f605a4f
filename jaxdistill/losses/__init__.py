"""Terms of an objective: one method, one file. Adding one is a file here and a line below."""

from jaxdistill.losses import cc as cc
from jaxdistill.losses import crd as crd
from jaxdistill.losses import cross_entropy as cross_entropy
from jaxdistill.losses import decay as decay
from jaxdistill.losses import graph as graph
from jaxdistill.losses import hidden as hidden
from jaxdistill.losses import kd as kd
from jaxdistill.losses import logit_mse as logit_mse
from jaxdistill.losses import pkt as pkt
from jaxdistill.losses import related_labels as related_labels
from jaxdistill.losses import rkd as rkd
from jaxdistill.losses import similarity as similarity
