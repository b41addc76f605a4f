"""Time a step with a language model's cached teacher: python -m experiments.benchmarks.from_cache [--size gpu]

Times a student's step with cross-entropy, with the largest 128 logits of a cached teacher and the rest, and with 128
draws, in turns on the same batch, and prints the ratios of the medians. The cache holds random values, which do not
change the time.
"""

import argparse

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.lm import network, tokens
from experiments.benchmarks.measured import clock, timed
from experiments.benchmarks.sizes import SIZES
from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.types import NO_VARIABLES, Outputs
from jaxdistill.models.combinators import in_dtype
from jaxdistill.teachers.codec import Encoding, decoding_model, encode
from jaxdistill.teachers.sparse_logits import draw_keys

KEPT = {
    "cross-entropy": None,
    "top 128 + tail": Encoding("", "float16", 128, ()),
    "128 draws": Encoding("", "float16", 0, (), 128, 1.0),
}


def student_step(encoding: Encoding | None, size: dict, in_bfloat16: bool, batch: dict):
    """Make a function that runs one step."""
    student = network(size["vocabulary"], **size["student"])
    student = in_dtype(student, "bfloat16") if in_bfloat16 else student
    teachers, spec = (), "cross_entropy()"
    if encoding:
        keys = draw_keys(jnp.arange(size["rows"]), batch["mask"].shape)
        logits = lambda key: 3 * jax.random.normal(key, (size["vocabulary"],))
        one = jax.jit(lambda key: encode(Outputs(logits(key)[None]), encoding, key[None]))
        rows = jax.lax.map(lambda row: jax.lax.map(one, row), keys)  # a token at a time, to fit in memory
        batch = batch | {f"cached/t/{name}": x[:, :, 0] for name, x in rows.items()}
        teachers, spec = (decoding_model("cached/t/", size["vocabulary"], 0),), "kd(temperature=1.0)"
    update = optimizer(registry.optimizers.build("adamw()", ""), 1e-4, clip_norm=1.0)
    terms = {"term": WeightedTerm(registry.losses.build(spec, ""))}
    step = registry.steps["offline"](
        student, teachers, objective(terms, registry.fusions["single"](), size["chunks"]), update
    )
    rows = {"train": batch}
    state = [jax.jit(step.init)(jax.random.key(0), (NO_VARIABLES,) * len(teachers), rows)]
    compiled = jax.jit(step.update, donate_argnums=0)

    def run() -> None:
        state[0], metrics = compiled(state[0], (NO_VARIABLES,) * len(teachers), rows)
        jax.block_until_ready((state[0], metrics))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--rounds", default=15, type=int)
    args = parser.parse_args()
    size = SIZES["lm"][args.size]
    calls = {name: student_step(keep, size, args.size == "gpu", tokens(size)) for name, keep in KEPT.items()}
    timed(calls, 2)  # compiles
    seconds_of = timed(calls, args.rounds, clock())
    table = Table("a step by", "ms", "of cross-entropy's")
    for name, seconds in seconds_of.items():
        table.add_row(name, f"{1000 * seconds:.1f}", f"{seconds / seconds_of['cross-entropy']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
