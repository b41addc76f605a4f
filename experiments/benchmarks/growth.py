"""Time the head as it grows: python -m experiments.benchmarks.growth [--rounds 5] [--out FILE]

One pass over the heads of a student and its teachers with the forward KL at T = 2, as in `head`, with 1, 2, 4 and 8
times the tokens, the classes or the teachers. Chunks hold the same number of tokens. Prints processor time, and the
memory that the compiled program needs beside its arguments and its results.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.measured import Work, clock, timed
from experiments.benchmarks.sizes import SIZES, TEMPERATURE
from jaxdistill.core import registry
from jaxdistill.core.objective import WeightedTerm, objective
from jaxdistill.core.types import Factored, Outputs, Signals

TIMES = (1, 2, 4, 8)
SMALLEST = {"tokens": 128, "classes": 8192, "teachers": 1}


def work(tokens: int, classes: int, teachers: int) -> Work:
    """Compile value and gradient of the student's head beside some teachers."""
    size = SIZES["head"]["cpu"]
    chunks = tokens * size["chunks"] // (size["rows"] * size["length"])
    fusion = registry.fusions["single" if teachers == 1 else "average"]()
    term = registry.losses.build(f"kd(temperature={TEMPERATURE})", "")
    minimised = objective({"kd": WeightedTerm(term)}, fusion, chunks)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    head = lambda width: Factored(array(size["rows"], tokens // size["rows"], width), array(width, classes))

    def loss(student: Factored, others: tuple[Factored, ...]) -> jax.Array:
        outputs = tuple(Outputs(jax.lax.stop_gradient(teacher)) for teacher in others)
        mask = jnp.ones(student.shape[:2])
        signals = {"train": Signals(Outputs(student), outputs, None, {}, mask, jnp.zeros((), jnp.int32), 1.0, {})}
        params, state = minimised.init(jax.random.key(0), signals)
        return minimised.loss(params, state, signals, minimised.weights(0), key=jax.random.key(0))[0]

    heads = head(size["student"]), (head(size["teacher"]),) * teachers
    compiled = jax.jit(jax.value_and_grad(loss)).trace(*heads).lower().compile()
    draw = lambda n, x: 0.02 * jax.random.normal(jax.random.key(n), x.shape, x.dtype)
    leaves, structure = jax.tree.flatten(heads)
    values = jax.tree.unflatten(structure, [draw(n, x) for n, x in enumerate(leaves)])
    return Work(lambda: jax.block_until_ready(compiled(*values)), 0.0, compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default=5, type=int, help="rounds, in turns")
    parser.add_argument("--out", default="", metavar="FILE", help="write the numbers here, as JSON")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for what in SMALLEST:
        # the others in the middle of their ranges, or the costs that do not grow with this one would hide its growth
        fixed = {"tokens": 256, "classes": 32_768, "teachers": 1}
        works = {times: work(**fixed | {what: SMALLEST[what] * times}) for times in TIMES}
        seconds = timed({str(times): each.step for times, each in works.items()}, args.rounds, clock())
        for times, each in works.items():
            memory = each.compiled.memory_analysis().temp_size_in_bytes / 2**20
            rows.append({"of": what, "count": SMALLEST[what] * times, "ms": 1e3 * seconds[str(times)], "MiB": memory})
            first = next(row for row in rows if row["of"] == what)
            ratio = rows[-1]["ms"] / first["ms"]
            print(
                f"{what:9} {rows[-1]['count']:>6} {rows[-1]['ms']:8.1f} ms ({ratio:.2f} of the first) {memory:6.1f} MiB"
            )
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
