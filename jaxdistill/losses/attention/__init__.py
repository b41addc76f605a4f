"""Losses that compare what attention heads do.

A new loss is a file here and a line below.
"""

from jaxdistill.losses.attention import heads as heads
from jaxdistill.losses.attention import minilm as minilm
from jaxdistill.losses.attention import minilm2 as minilm2
from jaxdistill.losses.attention import tinybert as tinybert
