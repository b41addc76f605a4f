"""Kernels for GPU and TPU: what the compiler makes of a factored head's terms, with each logit read less often."""
