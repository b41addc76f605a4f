"""The rules that a config must keep, grouped by what they check. `run/validate.py` lists all of them.

A rule is a function that returns nothing if the config keeps the rule, and otherwise raises a `ConfigError`.
"""
