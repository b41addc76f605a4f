"""Locate, check, load, convert and export pretrained checkpoints: Hugging Face, GGUF, and old PyTorch files."""
