"""Losses that compare relations between examples, such as their distances, or that use relations between classes.

To add a loss, add a module to this folder and import it below; the import registers the loss.
"""

from jaxdistill.losses.relations import cc as cc
from jaxdistill.losses.relations import class_graph as class_graph
from jaxdistill.losses.relations import crd as crd
from jaxdistill.losses.relations import graph as graph
from jaxdistill.losses.relations import pkt as pkt
from jaxdistill.losses.relations import related_labels as related_labels
from jaxdistill.losses.relations import rkd as rkd
from jaxdistill.losses.relations import similarity as similarity
