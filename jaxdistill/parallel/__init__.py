"""Device meshes, sharding rules, and compilation of models with `jit` or `pmap`."""
