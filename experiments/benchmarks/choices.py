"""Measure each choice of a language model's step: python -m experiments.benchmarks.choices [--size gpu]

Changes one thing at a time in the step of `lm.py`, and runs each changed step in turns with the unchanged one. Prints
the ratio of the median times, the memory that the compiled program needs besides its arguments, and the difference of
the first loss. Layer options apply to student and teacher, rematerialisation to the student.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.benchmarks.lm import TERMS, network, tokens
from experiments.benchmarks.measured import Work, clock, timed, training_step
from experiments.benchmarks.sizes import SIZES
from jaxdistill.core.interfaces import Objective
from jaxdistill.core.objective import weighted_sum


class Choice(NamedTuple):
    """A change of the step: options of both networks, of the student, of `training_step`, and a factor of chunks."""

    both: Mapping[str, Any] = {}
    student: Mapping[str, Any] = {}
    chunks: float = 1.0
    step: Mapping[str, Any] = {}


def with_two_passes(minimised: Objective) -> Objective:
    """Differentiate the means: each chunk's logits are computed for the value and again for the gradient."""

    def loss(params, state, signals, weights, *, key):
        means, state = minimised.apply(params, state, signals, key=key)
        return weighted_sum(means, weights), (means, state)

    return minimised._replace(loss=loss)


UNCHANGED = "scanned layers, nothing rematerialised, XLA's attention, donated, one pass over the head"
CHOICES = {
    "layers unrolled": Choice(both={"scan_layers": False}),
    "all but products rematerialised": Choice(student={"remat": "dots"}),
    "all of a layer rematerialised": Choice(student={"remat": "full"}),
    "attention probabilities formed": Choice(both={"attentions": True}),
    "attention by cuDNN": Choice(both={"attention": "cudnn"}),
    "state not donated": Choice(step={"donated": False}),
    "half as many chunks": Choice(chunks=0.5),
    "twice as many chunks": Choice(chunks=2.0),
    "logits whole": Choice(chunks=0.0),
    "logits formed again for the gradient": Choice(step={"path": with_two_passes}),
    "teacher in int8": Choice(step={"bits": "int8"}),
    "teacher in fp8": Choice(step={"bits": "fp8"}),
}
GPU_ONLY = {"attention by cuDNN"}  # cuDNN runs on GPUs alone


def build_work(choice: Choice, name: str) -> Work:
    """Build the step of a choice, at a size."""
    size = SIZES["lm"][name]
    student = network(size["vocabulary"], **size["student"], **choice.both, **choice.student)
    teacher = network(size["vocabulary"], **size["teacher"], **choice.both)
    chunks = max(1, int(size["chunks"] * choice.chunks))
    return training_step(student, teacher, TERMS, tokens(size), name, chunks, **choice.step)


def memory_mib(work: Work) -> float:
    """Return the MiB that the program needs besides its arguments; donated buffers are overwritten."""
    memory = work.compiled.memory_analysis()
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes) / 2**20


def measure(choice: Choice, base: Work, first: float, args: argparse.Namespace) -> dict[str, float]:
    """Compare a choice with the unchanged step, whose first loss is `first`; frees the choice's state on return."""
    changed = build_work(choice, args.size)
    loss = changed.step()
    base.step()
    seconds = timed({"own": changed.step, "base": base.step}, args.rounds, clock())
    return {
        "ms": 1000 * seconds["own"],
        "ratio": seconds["own"] / seconds["base"],
        "temporaries": memory_mib(changed),
        "base_temporaries": memory_mib(base),
        "loss": loss / first - 1,
    }


def show(results: Mapping[str, Mapping[str, float]], args: argparse.Namespace) -> None:
    table = Table("changed", "ms", "of the unchanged step", "temporaries, MiB", "of the unchanged", "first loss, %")
    for name, row in results.items():
        memory = f"{row['temporaries'] / row['base_temporaries']:.2f}"
        cells = (f"{row['ms']:.0f}", f"{row['ratio']:.3f}", f"{row['temporaries']:.0f}", memory)
        table.add_row(name, *cells, f"{100 * row['loss']:+.4f}")
    Console(width=160).print(table)
    print(f"the unchanged step: {UNCHANGED}; size {args.size}, {args.rounds} rounds in turns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="cpu", choices=["cpu", "gpu"], help="see sizes.py")
    parser.add_argument("--rounds", default=7, type=int, help="rounds, in turns")
    parser.add_argument("--only", nargs="*", default=list(CHOICES), choices=CHOICES, metavar="CHOICE")
    parser.add_argument("--out", default="", metavar="FILE", help="write the numbers here, as JSON")
    args = parser.parse_args()
    base = build_work(Choice(), args.size)
    first, results = base.step(), {}
    for name in args.only:
        if name in GPU_ONLY and args.size == "cpu":
            continue
        results[name] = measure(CHOICES[name], base, first, args)
        print(f"{name}: {results[name]['ratio']:.3f}", flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(results, indent=1))
    show(results, args)


if __name__ == "__main__":
    main()
