"""The rules that a config may break, by what they look at. `run/validate.py` lists all of them."""
