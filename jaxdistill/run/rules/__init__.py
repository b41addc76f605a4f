"""The rules that a config must keep, grouped by what they check. `run/validate.py` lists all of them."""
