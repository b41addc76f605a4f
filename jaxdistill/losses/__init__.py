"""Loss terms of an objective: one method per file, in folders by what they compare."""

from jaxdistill.losses import attention as attention
from jaxdistill.losses import gradients as gradients
from jaxdistill.losses import hidden as hidden
from jaxdistill.losses import logits as logits
from jaxdistill.losses import pairs as pairs
from jaxdistill.losses import relations as relations
from jaxdistill.losses import task as task
from jaxdistill.losses import text as text
