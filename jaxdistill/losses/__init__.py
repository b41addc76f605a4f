"""Terms of an objective: one method, one file. Adding one is a file here and a line below."""

from jaxdistill.losses import attention_transfer as attention_transfer
from jaxdistill.losses import cross_entropy as cross_entropy
from jaxdistill.losses import decay as decay
from jaxdistill.losses import fisher_hints as fisher_hints
from jaxdistill.losses import fsp as fsp
from jaxdistill.losses import heads as heads
from jaxdistill.losses import hidden as hidden
from jaxdistill.losses import jacobian as jacobian
from jaxdistill.losses import kd as kd
from jaxdistill.losses import logit_mse as logit_mse
from jaxdistill.losses import loss_gradients as loss_gradients
from jaxdistill.losses import minilm as minilm
from jaxdistill.losses import minilm2 as minilm2
from jaxdistill.losses import nst as nst
from jaxdistill.losses import pkd as pkd
from jaxdistill.losses import review as review
from jaxdistill.losses import semckd as semckd
from jaxdistill.losses import sobolev as sobolev
from jaxdistill.losses import tinybert as tinybert
from jaxdistill.losses import vid as vid
