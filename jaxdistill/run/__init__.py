"""From a config to a finished run: resolve, validate, train, and the commands."""
