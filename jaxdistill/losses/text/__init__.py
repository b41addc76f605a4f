"""Losses for language models: teachers with another tokenizer, and text sampled from the student.

To add a loss, add a file here and an import below.
"""

from jaxdistill.losses.text import gold as gold
from jaxdistill.losses.text import policy_gradient as policy_gradient
from jaxdistill.losses.text import uld as uld
