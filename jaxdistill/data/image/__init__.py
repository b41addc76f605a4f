"""Images: augmentation, and the preprocessing of pretrained checkpoints."""
