"""Time a tiled top-k: python -m experiments.benchmarks.top_k [--size gpu]

Selects the largest 128 logits of a vocabulary with `jax.lax.top_k` and with our tiled version, in turns. Sampling as
many tokens is timed for comparison.
"""

import argparse

import jax
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.measured import clock, timed
from jaxdistill.teachers.sparse_logits import draw_classes
from jaxdistill.teachers.top_k import top_k

TOKENS, VOCABULARY, KEPT = {"cpu": 128, "gpu": 8192}, 151_936, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="cpu", choices=TOKENS)
    parser.add_argument("--rounds", default=9, type=int)
    args = parser.parse_args()
    tokens = TOKENS[args.size]
    logits = 3 * jax.random.normal(jax.random.key(0), (tokens, VOCABULARY))
    keys = jax.random.split(jax.random.key(1), tokens)
    chosen = {"lax.top_k": lambda x: jax.lax.top_k(x, KEPT), "tiled": lambda x: top_k(x, KEPT)}
    compiled = {name: jax.jit(choose) for name, choose in chosen.items()}
    calls = {name: lambda call=call: jax.block_until_ready(call(logits)) for name, call in compiled.items()}
    drawn = jax.jit(lambda x, keys: draw_classes(x, keys, KEPT))
    calls["draws"] = lambda: drawn(logits, keys).block_until_ready()
    timed(calls, 1)  # compiles
    seconds_of = timed(calls, args.rounds, clock())
    table = Table(f"{KEPT} of {VOCABULARY:,}", f"ms, {tokens} tokens", "of lax.top_k")
    for name, seconds in seconds_of.items():
        table.add_row(name, f"{1000 * seconds:.1f}", f"{seconds / seconds_of['lax.top_k']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
