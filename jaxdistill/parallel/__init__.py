"""Meshes, sharding rules and compilation: the only code that knows about devices."""
