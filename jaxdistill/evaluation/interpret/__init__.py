"""Interpret models: which parts of a teacher matter."""
