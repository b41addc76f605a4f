"""Losses for language models: for teachers with another tokenizer, and for text sampled from the student.

To add a loss, add a module to this folder and import it below; the import registers the loss.
"""

from jaxdistill.losses.text import gold as gold
from jaxdistill.losses.text import policy_gradient as policy_gradient
from jaxdistill.losses.text import uld as uld
