"""Everything about a teacher: build, load, options, cache, sub-mesh."""
