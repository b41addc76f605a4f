"""Losses between hidden states and feature maps of student and teacher.

To add a loss, add a file to this folder and a line below.
"""

from jaxdistill.losses.hidden import attention_transfer as attention_transfer
from jaxdistill.losses.hidden import fisher_hints as fisher_hints
from jaxdistill.losses.hidden import fsp as fsp
from jaxdistill.losses.hidden import fused_hidden as fused_hidden
from jaxdistill.losses.hidden import hidden as hidden
from jaxdistill.losses.hidden import nst as nst
from jaxdistill.losses.hidden import pkd as pkd
from jaxdistill.losses.hidden import review as review
from jaxdistill.losses.hidden import routed_hidden as routed_hidden
from jaxdistill.losses.hidden import semckd as semckd
from jaxdistill.losses.hidden import vid as vid
