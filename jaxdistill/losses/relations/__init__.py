"""Losses between relations of examples, or of classes.

To add a loss, add a file to this folder and a line below.
"""

from jaxdistill.losses.relations import cc as cc
from jaxdistill.losses.relations import crd as crd
from jaxdistill.losses.relations import graph as graph
from jaxdistill.losses.relations import pkt as pkt
from jaxdistill.losses.relations import related_labels as related_labels
from jaxdistill.losses.relations import rkd as rkd
from jaxdistill.losses.relations import similarity as similarity
