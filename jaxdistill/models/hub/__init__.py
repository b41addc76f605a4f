"""Find, check, load and convert pretrained checkpoints."""
