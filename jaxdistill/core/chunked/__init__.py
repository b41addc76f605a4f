"""Loss terms of a factored head, chunk by chunk: a large vocabulary without all its logits in memory."""
