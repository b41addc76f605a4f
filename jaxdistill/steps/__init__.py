"""Algorithms: one per file, one signature. Adding one is a file here and a line below."""

from jaxdistill.steps import gradnorm as gradnorm
from jaxdistill.steps import mgda as mgda
from jaxdistill.steps import offline as offline
from jaxdistill.steps import uncertainty as uncertainty
