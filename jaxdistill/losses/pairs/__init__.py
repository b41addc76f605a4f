"""Losses for pairs of image and text, from models with two towers.

To add a loss, add a module to this folder and import it below; the import registers the loss.
"""

from jaxdistill.losses.pairs import affinity as affinity
from jaxdistill.losses.pairs import contrastive as contrastive
from jaxdistill.losses.pairs import embedding as embedding
from jaxdistill.losses.pairs import interactive as interactive
from jaxdistill.losses.pairs import sigmoid as sigmoid
