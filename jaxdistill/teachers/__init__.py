"""Teachers: build, load, options, cache, sub-mesh."""
