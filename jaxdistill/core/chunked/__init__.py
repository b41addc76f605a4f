"""Factored heads chunk by chunk: loss terms of a large vocabulary without its logits in memory."""
