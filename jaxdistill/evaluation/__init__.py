"""Metrics, the evaluator, cost, interpretation and reports: what is measured of a model."""
