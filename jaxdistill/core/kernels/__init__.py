"""Pallas kernels for TPUs, generated from any pointwise loss over the classes."""
