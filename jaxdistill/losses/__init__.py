"""Terms of an objective: one method, one file. Adding one is a file here and a line below."""

from jaxdistill.losses import cross_entropy as cross_entropy
from jaxdistill.losses import decay as decay
from jaxdistill.losses import dist as dist
from jaxdistill.losses import dkd as dkd
from jaxdistill.losses import gold as gold
from jaxdistill.losses import hidden as hidden
from jaxdistill.losses import jsd as jsd
from jaxdistill.losses import kd as kd
from jaxdistill.losses import logit_mse as logit_mse
from jaxdistill.losses import reverse_kl as reverse_kl
from jaxdistill.losses import skew_kl as skew_kl
from jaxdistill.losses import skew_reverse_kl as skew_reverse_kl
from jaxdistill.losses import standardized as standardized
from jaxdistill.losses import taid as taid
from jaxdistill.losses import uld as uld
