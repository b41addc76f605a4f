"""What does each choice buy in a language model's step? python -m experiments.benchmarks.choices [--size gpu]

The step of `lm.py` with one thing changed at a time, each in turns with the step as it is: the ratio of the medians,
what the compiled program needs beside its arguments, and how far its first loss is from that of the step as it is.
A layer's choices are those of student and teacher; what is rematerialised, of the student.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.benchmarks.lm import TERMS, network, tokens
from experiments.benchmarks.measured import Work, clock, learning, timed
from experiments.benchmarks.sizes import SIZES
from jaxdistill.core.objective import weighted
from jaxdistill.core.types import Objective


class Choice(NamedTuple):
    """What is changed: options of both networks, of the student alone, the number of chunks, and of `learning`."""

    both: Mapping[str, Any] = {}
    student: Mapping[str, Any] = {}
    chunks: float = 1.0
    step: Mapping[str, Any] = {}


def formed_again(minimised: Objective) -> Objective:
    """Differentiates the means: every piece's logits are formed once for the value, and again for the gradient."""

    def loss(params, state, signals, weights, *, key):
        means, state = minimised.apply(params, state, signals, key=key)
        return weighted(means, weights), (means, state)

    return minimised._replace(loss=loss)


AS_IT_IS = "scanned layers, nothing rematerialised, XLA's attention, donated, one pass over the head"
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
    "logits formed again for the gradient": Choice(step={"path": formed_again}),
    "teacher in int8": Choice(step={"bits": "int8"}),
    "teacher in fp8": Choice(step={"bits": "fp8"}),
}
GPU_ONLY = {"attention by cuDNN"}  # a CPU has no compiler for it


def work(choice: Choice, name: str) -> Work:
    """The step of a choice, at a size."""
    size = SIZES["lm"][name]
    student = network(size["vocabulary"], **size["student"], **choice.both, **choice.student)
    teacher = network(size["vocabulary"], **size["teacher"], **choice.both)
    chunks = max(1, int(size["chunks"] * choice.chunks))
    return learning(student, teacher, TERMS, tokens(size), name, chunks, **choice.step)


def held(done: Work) -> float:
    """MiB that the program needs beside its arguments; what is donated is written over."""
    memory = done.compiled.memory_analysis()
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes) / 2**20


def measured(choice: Choice, base: Work, first: float, known: argparse.Namespace) -> dict[str, float]:
    """A choice beside the step as it is, whose first loss is known; its state is gone when this returns."""
    own = work(choice, known.size)
    loss = own.step()
    base.step()
    took = timed({"own": own.step, "base": base.step}, known.rounds, clock())
    return {
        "ms": 1000 * took["own"],
        "ratio": took["own"] / took["base"],
        "temporaries": held(own),
        "base_temporaries": held(base),
        "loss": loss / first - 1,
    }


def show(found: Mapping[str, Mapping[str, float]], known: argparse.Namespace) -> None:
    table = Table("changed", "ms", "of the step as it is", "temporaries, MiB", "of those as it is", "first loss, %")
    for name, row in found.items():
        memory = f"{row['temporaries'] / row['base_temporaries']:.2f}"
        told = (f"{row['ms']:.0f}", f"{row['ratio']:.3f}", f"{row['temporaries']:.0f}", memory)
        table.add_row(name, *told, f"{100 * row['loss']:+.4f}")
    Console(width=160).print(table)
    print(f"as it is: {AS_IT_IS}; size {known.size}, {known.rounds} rounds in turns")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--size", default="cpu", choices=["cpu", "gpu"], help="see sizes.py")
    words.add_argument("--rounds", default=7, type=int, help="in turns")
    words.add_argument("--only", nargs="*", default=list(CHOICES), choices=CHOICES, metavar="CHOICE")
    words.add_argument("--out", default="", metavar="FILE", help="for the numbers, as JSON")
    known = words.parse_args()
    base = work(Choice(), known.size)
    first, found = base.step(), {}
    for name in known.only:
        if name in GPU_ONLY and known.size == "cpu":
            continue
        found[name] = measured(CHOICES[name], base, first, known)
        print(f"{name}: {found[name]['ratio']:.3f}", flush=True)
        if known.out:
            Path(known.out).write_text(json.dumps(found, indent=1))
    show(found, known)


if __name__ == "__main__":
    main()
