"""Losses between the attention heads of student and teacher.

To add a loss, add a file to this folder and a line below.
"""

from jaxdistill.losses.attention import heads as heads
from jaxdistill.losses.attention import minilm as minilm
from jaxdistill.losses.attention import minilm2 as minilm2
from jaxdistill.losses.attention import tinybert as tinybert
