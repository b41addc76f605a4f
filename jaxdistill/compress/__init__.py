"""Compression of models besides distillation: quantisation, and reduced vocabularies."""
