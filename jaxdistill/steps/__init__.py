"""Algorithms: one per file, one signature. Adding one is a file here and a line below."""

from jaxdistill.steps import offline as offline
