"""Losses for language models: unlike tokenizers, and text that the student wrote.

A new loss is a file here and a line below.
"""

from jaxdistill.losses.text import gold as gold
from jaxdistill.losses.text import policy_gradient as policy_gradient
from jaxdistill.losses.text import uld as uld
