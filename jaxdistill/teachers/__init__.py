"""Teachers: live, cached on disk, in 8 bits, or on their own sub-mesh."""
