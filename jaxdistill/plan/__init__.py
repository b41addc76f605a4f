"""A config's training step compiled ahead of time for devices that are not there: what fits, and what it costs."""
