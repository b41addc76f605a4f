"""Meshes, sharding rules, collectives and compilation: the only place that knows about devices."""
