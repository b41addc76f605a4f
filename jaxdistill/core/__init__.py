"""Types, objective, schedules, checkpoints, registry: the base of all other folders."""
