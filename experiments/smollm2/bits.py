"""Measure SmolLM2 as an 8-bit teacher: python -m experiments.smollm2.bits [--rows 16]

Compares the teacher of configs/smollm2.py in float32, bfloat16, int8 and fp8 on texts of the test split: its bytes,
nats per token, the KL of its predictions from those of float32 (the largest possible error of a student's loss), and
time.
"""

import argparse

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.measured import clock
from experiments.smollm2.__main__ import CONFIG, VOCABULARY
from jaxdistill.evaluation import metrics
from jaxdistill.parallel.mesh import make_mesh
from jaxdistill.run.commands import vocabulary
from jaxdistill.run.config import differ
from jaxdistill.run.config_files import load_config
from jaxdistill.run.resolve import resolve
from jaxdistill.teachers.load import load as load_teacher

FORMATS = {"float32": {}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"quantized": "int8"}, "fp8": {"quantized": "fp8"}}
BATCH = 4


def teacher(form: dict[str, str], rows, mesh):
    """Load the teacher in one number format; return `(model, values)`."""
    config = load_config(str(CONFIG))
    entry = {"model": config.teachers.smollm2.model, "quantized": form.get("quantized", "")}
    config = differ(config, teachers={"smollm2": entry}, dtype=form.get("dtype", "float32"))
    teacher = resolve(config, mesh.devices.flat).live_teacher("smollm2", alone=True)
    return teacher.network, load_teacher(teacher, rows)


def timed_logits(model, values, batches) -> tuple[list[np.ndarray], float]:
    """Compute the logits of all batches, and the seconds of the fastest batch."""
    forward = jax.jit(lambda v, rows: model.apply(*v, rows, train=False, key=jax.random.key(0))[0].dense().logits)
    logits, seconds, now = [], [], clock()
    for rows in batches:
        start = now()
        logits.append(np.asarray(forward(values, rows), np.float32))
        seconds.append(now() - start)
    return logits, min(seconds)


def compare(logits, floats, batches) -> tuple[float, ...]:
    """Compare with float32: nats per token, KL from its logits, and the share of tokens with the same argmax."""
    means = []
    for quantized, reference, rows in zip(logits, floats, batches, strict=True):
        nll = metrics.nll(quantized, rows["label"], rows["mask"])
        kl, same = (measure(quantized, reference, rows["mask"]) for measure in (metrics.divergence, metrics.agreement))
        means.append([(float(mean.sum), float(mean.count)) for mean in (nll, kl, same)])
    sums, counts = np.moveaxis(np.sum(means, axis=0), -1, 0)
    return tuple(sums / counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=16, type=int, help="texts of 256 tokens")
    args, console = parser.parse_args(), Console()
    if not (VOCABULARY / "vocabulary.json").is_file():
        console.print(vocabulary.reduce_vocabulary(load_config(f"{CONFIG}:whole"), VOCABULARY, 0))
    data = resolve(load_config(str(CONFIG)), jax.devices()).data
    records = data.open(data.test)
    batches = [records.take(np.arange(first, first + BATCH)) for first in range(0, args.rows, BATCH)]
    mesh, floats = make_mesh((1, 1, 1)), []
    table = Table("teacher", "MB", "nats per token", "KL from float32", "same next token, %", "ms a token")
    for name, form in FORMATS.items():
        with jax.set_mesh(mesh):
            model, values = teacher(form, batches[0], mesh)
            logits, seconds = timed_logits(model, values, batches)
        floats = floats or logits
        nll, kl, same = compare(logits, floats, batches)
        size, speed = sum(x.nbytes for x in jax.tree.leaves(values)), seconds / batches[0]["mask"].size
        table.add_row(name, f"{size / 1e6:.0f}", f"{nll:.4f}", f"{kl:.5f}", f"{100 * same:.2f}", f"{1e3 * speed:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
