"""What does a step from a language model's cache cost? python -m experiments.benchmarks.from_cache [--size gpu]

A student's step by cross-entropy, by the largest 128 logits of a cached teacher and the rest, and by 128 draws, in
turns on the same batch; the ratios of the medians. What the cache holds is made up, for a step does not care.
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
from jaxdistill.core.objective import Weighted, objective
from jaxdistill.core.optim import optimizer
from jaxdistill.core.types import NO_VARIABLES, Outputs
from jaxdistill.models.combinators import in_dtype
from jaxdistill.teachers.codec import Keep, encode, from_batch
from jaxdistill.teachers.sparse_logits import keys_of

KEPT = {
    "cross-entropy": None,
    "top 128 + tail": Keep("", "float16", 128, ()),
    "128 draws": Keep("", "float16", 0, (), 128, 1.0),
}


def learner(keep: Keep | None, size: dict, half: bool, batch: dict):
    """A function that makes one step."""
    student = network(size["vocabulary"], **size["student"])
    student = in_dtype(student, "bfloat16") if half else student
    teachers, spec = (), "cross_entropy()"
    if keep:
        keys = keys_of(jnp.arange(size["rows"]), batch["mask"].shape)
        logits = lambda key: 3 * jax.random.normal(key, (size["vocabulary"],))
        one = jax.jit(lambda key: encode(Outputs(logits(key)[None]), keep, key[None]))
        rows = jax.lax.map(lambda row: jax.lax.map(one, row), keys)  # a token at a time: all logits would not fit
        batch = batch | {f"cached/t/{name}": x[:, :, 0] for name, x in rows.items()}
        teachers, spec = (from_batch("cached/t/", size["vocabulary"], 0),), "kd(temperature=1.0)"
    update = optimizer(registry.optimizers.build("adamw()", ""), 1e-4, clip_norm=1.0)
    terms = {"term": Weighted(registry.losses.build(spec, ""))}
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
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--size", default="cpu", choices=["cpu", "gpu"])
    words.add_argument("--rounds", default=15, type=int)
    known = words.parse_args()
    size = SIZES["lm"][known.size]
    calls = {name: learner(keep, size, known.size == "gpu", tokens(size)) for name, keep in KEPT.items()}
    timed(calls, 2)  # compiles
    took = timed(calls, known.rounds, clock())
    table = Table("a step by", "ms", "of cross-entropy's")
    for name, seconds in took.items():
        table.add_row(name, f"{1000 * seconds:.1f}", f"{seconds / took['cross-entropy']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
