"""Images: augmentation, and the processors of pretrained checkpoints."""
