"""Losses that need no teacher outputs: the task loss on labels, and regularisers of the parameters.

To add a loss, add a module to this folder and import it below; the import registers the loss.
"""

from jaxdistill.losses.task import cross_entropy as cross_entropy
from jaxdistill.losses.task import decay as decay
