"""Terms of an objective: one method, one file. Adding one is a file here and a line below."""

from jaxdistill.losses import cross_entropy, decay, hidden, kd, logit_mse

__all__ = ["cross_entropy", "decay", "hidden", "kd", "logit_mse"]
