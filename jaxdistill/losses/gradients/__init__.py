"""Losses that compare derivatives.

A new loss is a file here and a line below.
"""

from jaxdistill.losses.gradients import jacobian as jacobian
from jaxdistill.losses.gradients import loss_gradients as loss_gradients
from jaxdistill.losses.gradients import sobolev as sobolev
