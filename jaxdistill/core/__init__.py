"""Types, objective, schedules, optimisers, checkpoints, registry and errors: what everything else is made of."""
