"""Pretrained checkpoints: finding, checking and reading them, and the names of their weights."""
