"""Fuse several teachers into one teacher: one file for each method.

A new fusion is a file in this folder and an import line below.
"""

from jaxdistill.fusion import average as average
from jaxdistill.fusion import confidence as confidence
from jaxdistill.fusion import entropy as entropy
from jaxdistill.fusion import gate as gate
from jaxdistill.fusion import min_norm as min_norm
from jaxdistill.fusion import sampled as sampled
from jaxdistill.fusion import single as single
