"""Plan the presets of configs/pods.py for TPU pods."""
