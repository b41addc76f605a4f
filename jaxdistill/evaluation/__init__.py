"""Measure models: metrics, evaluation, cost, interpretation and reports."""
