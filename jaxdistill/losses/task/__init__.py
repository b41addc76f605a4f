"""Losses on labels and parameters: the task loss and regularisers.

To add a loss, add a file here and an import below.
"""

from jaxdistill.losses.task import cross_entropy as cross_entropy
from jaxdistill.losses.task import decay as decay
