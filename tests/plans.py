"""Configs for tests of `jaxdistill plan`: a small decoder on a mesh of 8 devices."""

import runs

from jaxdistill.run.config import make

PODS = str(runs.ROOT / "configs" / "pods.py")
SIZES = "vocabulary=64, width=16, heads=4, kv_heads=2, head_size=8, ffn=32, positions=32"


def decoder(**changes):
    settings = {
        "student": {"model": f"decoder({SIZES}, depth=3, remat='none')"},
        "teachers": {"large": {"model": f"decoder({SIZES}, depth=5)", "steps": 1}},
        "objective": {"kd": {"weight": 0.9}, "cross_entropy": {"weight": 0.1}},
        "batch_size": 8,
        "data": {"name": "drawn_tokens(vocabulary=64, length=16, rows=64)"},
        "evaluate": {"batch_size": 8},
        "chunks": 4,
        "control": False,
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
    }
    return make(**{**settings, **changes})
