"""Meshes, sharding rules and compilation: the only place that knows about devices."""
