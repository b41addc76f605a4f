"""Losses that compare derivatives of student and teacher.

To add a loss, add a file here and an import below.
"""

from jaxdistill.losses.gradients import jacobian as jacobian
from jaxdistill.losses.gradients import loss_gradients as loss_gradients
from jaxdistill.losses.gradients import sobolev as sobolev
