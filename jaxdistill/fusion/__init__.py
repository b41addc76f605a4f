"""Fusions of several teachers into one: one file for each. A new one is a file here and a line below."""

from jaxdistill.fusion import average as average
from jaxdistill.fusion import confidence as confidence
from jaxdistill.fusion import entropy as entropy
from jaxdistill.fusion import gate as gate
from jaxdistill.fusion import min_norm as min_norm
from jaxdistill.fusion import sampled as sampled
from jaxdistill.fusion import single as single
