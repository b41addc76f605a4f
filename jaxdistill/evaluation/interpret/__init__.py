"""Interpret trained models: measure which of their parts, such as attention heads, matter for the task."""
