"""Fixtures of the tests of trained models in use."""

from own_runs import home, trained

__all__ = ["home", "trained"]
