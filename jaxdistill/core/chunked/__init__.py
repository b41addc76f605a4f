"""Loss terms computed chunk by chunk over a sequence, so that a large vocabulary needs little memory for logits."""
