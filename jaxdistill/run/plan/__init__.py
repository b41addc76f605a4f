"""A training step compiled ahead of time, for devices that are not there."""
