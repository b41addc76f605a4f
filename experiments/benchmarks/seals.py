"""Measure what sealing costs: python -m experiments.benchmarks.seals [--config FILE] [--config.steps=200]

Trains in a folder of its own, and once more from the checkpoints of that run, which are read and checked. Prints the
seconds in the checksums of arrays and the seals of files, as a share of all seconds of a command.
"""

import argparse
import contextlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from jaxdistill import main as command_line
from jaxdistill.core import checkpoint, manifest, seal

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
OF_FILES = [name for name, each in vars(seal).items() if getattr(each, "__module__", "") == seal.__name__]
SEALING = [(checkpoint, "array_checksums"), (manifest, "differing_arrays"), *((seal, name) for name in OF_FILES)]


@contextlib.contextmanager
def timed() -> Iterator[tuple[Counter, Counter]]:
    """Yield the seconds and the number of calls of each sealing function; of nested calls the outer one counts."""
    seconds, calls, inside = Counter[str](), Counter[str](), threading.local()

    def wrapped(name: str, function: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            if getattr(inside, "now", False):
                return function(*args, **options)
            jax.block_until_ready([x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)])  # not part of it
            inside.now, start = True, time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                seconds[name] += time.perf_counter() - start
                calls[name] += 1
                inside.now = False

        return call

    with contextlib.ExitStack() as stack:
        for module, name in SEALING:
            stack.enter_context(mock.patch.object(module, name, wrapped(name, getattr(module, name))))
        yield seconds, calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=QUICKSTART)
    args, changes = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        for which in ("fresh", "once more"):
            with timed() as (seconds, calls):
                start = time.perf_counter()
                code = command_line.run(["train", "--config", str(args.config), "--workdir", f"{folder}/run", *changes])
                total = time.perf_counter() - start
            if code:
                raise SystemExit(code)
            for result in Path(folder).rglob("result*.json"):  # as if killed after the last checkpoint
                result.unlink()
            share = 100 * seconds.total() / total
            listed = ", ".join(f"{name} {s:.3f} s in {calls[name]} calls" for name, s in seconds.most_common())
            print(f"{which}: {seconds.total():.3f} s of {total:.1f} s, {share:.2f} %: {listed}", flush=True)


if __name__ == "__main__":
    main()
