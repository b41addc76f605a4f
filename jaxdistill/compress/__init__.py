"""Make models smaller by other means than distillation: quantisation, and reduced vocabularies."""
