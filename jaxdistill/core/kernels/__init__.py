"""Pallas kernels for TPUs, generated from loss functions of pointwise operations and reductions over the classes."""
