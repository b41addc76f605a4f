"""Types, objective, schedules, optimisers, checkpoints, registry and errors: the base of all other folders."""
