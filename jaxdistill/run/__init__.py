"""Resolve, validate and run a config; the commands of `jaxdistill`."""
