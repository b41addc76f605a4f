"""Trained models written for use elsewhere."""
