"""Training steps: one file for each training algorithm, all with one signature.

To add a step, add a module to this folder and import it below; the import registers the step.
"""

from jaxdistill.steps import averaged as averaged
from jaxdistill.steps import batch_selection as batch_selection
from jaxdistill.steps import ewc as ewc
from jaxdistill.steps import gradnorm as gradnorm
from jaxdistill.steps import meta as meta
from jaxdistill.steps import mgda as mgda
from jaxdistill.steps import mutual as mutual
from jaxdistill.steps import offline as offline
from jaxdistill.steps import on_policy as on_policy
from jaxdistill.steps import pseudo_labels as pseudo_labels
from jaxdistill.steps import replay as replay
from jaxdistill.steps import routing as routing
from jaxdistill.steps import tuned_teacher as tuned_teacher
from jaxdistill.steps import uncertainty as uncertainty
