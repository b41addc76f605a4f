"""Measure the memory that checkpointing of inner steps saves: python -m experiments.meta.memory

Compiles the step of configs/meta.py, with a small residual network as student, for one CPU device, and does not run it.
Prints the bytes of its temporaries for K inner steps of 100 rows each, with checkpointing (as in `meta`) and without,
and those of `offline` on the same batch, which is how the student is finally updated.
"""

from unittest import mock

import jax
from rich.console import Console
from rich.table import Table

from experiments.meta.__main__ import CONFIG
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.plan.ahead import plan
from jaxdistill.run.plan.topology import find

ROWS, STEPS = 100, (1, 4, 16)
STUDENT = "resnet(widths=(8, 16), blocks=1, classes=10)"


def temporaries(word: str, rows: int, **differences) -> float:
    """Return the size of a preset's temporaries for a batch of `rows`, in MiB."""
    changes = {"student": {"model": STUDENT}, "batch_size": rows, "mesh": {"data": 1}, **differences}
    size = plan(differ(load_config(f"{CONFIG}:{word}"), **changes), find("cpu:1", 1)).temporaries
    assert size is not None  # on a CPU the compiler has no memory limit
    return size / 2**20


def main() -> None:
    table = Table("K", "checkpointed, MiB", "kept, MiB", "kept / checkpointed", "offline, MiB")
    for inner in STEPS:
        rows, step = inner * ROWS, f"meta(inner_steps={inner}, inner_lr=0.01)"
        saved, plain = temporaries("meta", rows, step=step), temporaries("static", rows)
        with mock.patch.object(jax, "checkpoint", lambda function, **_: function):
            kept = temporaries("meta", rows, step=step)
        table.add_row(str(inner), f"{saved:.1f}", f"{kept:.1f}", f"{kept / saved:.2f}", f"{plain:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
