"""Build and load teachers, read their outputs from a cache, or run them on their own sub-mesh."""
