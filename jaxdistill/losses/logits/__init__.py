"""Losses that compare the class distributions of student and teacher: soft targets and their variants.

To add a loss, add a module to this folder and import it below; the import registers the loss.
"""

from jaxdistill.losses.logits import dist as dist
from jaxdistill.losses.logits import dkd as dkd
from jaxdistill.losses.logits import hard as hard
from jaxdistill.losses.logits import jsd as jsd
from jaxdistill.losses.logits import kd as kd
from jaxdistill.losses.logits import known_classes as known_classes
from jaxdistill.losses.logits import logit_mse as logit_mse
from jaxdistill.losses.logits import reverse_kl as reverse_kl
from jaxdistill.losses.logits import skew_kl as skew_kl
from jaxdistill.losses.logits import skew_reverse_kl as skew_reverse_kl
from jaxdistill.losses.logits import standardized as standardized
from jaxdistill.losses.logits import taid as taid
from jaxdistill.losses.logits import ttm as ttm
