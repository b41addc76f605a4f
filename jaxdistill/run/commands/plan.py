"""Compiles a config's training step ahead of time, for chips that are not there: does it fit, and what does it cost?

jaxdistill plan --config configs/pods.py:qwen3 --topology v6e:16x16 [--config.a.b=value ...]

It is the step that a run would take, from the same code, compiled by the compiler of the real chip on any machine,
without weights: a network may be named by a folder that holds nothing but a config.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.plan import topology

EPILOG = """
examples:
  jaxdistill plan --config configs/pods.py:qwen3 --topology v6e:16x16
  jaxdistill plan --config configs/pods.py:llama405 --topology v5p:4x8x8 --json plan.json
  jaxdistill plan --config configs/quickstart.py --topology cpu:8        virtual devices, no extra needed

if it does not fit, in this order:
  --config.mesh.fsdp=-1 --config.mesh.data=1        parameters, optimiser and teacher over all chips
  --config.mesh.tensor=4                            heads and widths over 4 chips, where there are fewer rows than chips
  remat='full' in the student's model               layers are computed again in the backward pass, not kept
  --config.chunks=16                                fewer tokens' logits at a time
  --config.accumulate=4                             the student runs through a batch in pieces
  --config.batch_size=128                           fewer rows on each chip
  a larger topology, or --slices

The numbers: bytes held are those of the shapes and their shardings; temporaries (activations, gradients, gathered
layers) are the compiler's own. FLOPs are those of matrix products and convolutions, every turn of every loop.
Collectives are counted in the compiled program, bytes are what one chip sends if it passes them on in a ring. The times
are bounds from what the vendor publishes of a chip; nothing was run.

exit codes: 0 it fits; 1 it does not; 2 a mistake
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = cli.parser("plan", __doc__, EPILOG)
    words.add_argument("--topology", required=True, metavar="KIND:SIZE", help="v5e, v5p or v6e: v6e:16x16; or cpu:8")
    words.add_argument("--slices", type=int, default=1, metavar="N", help="how many of these, on one network; 1")
    words.add_argument("--json", default="", metavar="FILE", help="write the numbers there too")
    topology.before_jax(words.parse_known_args(argv)[0].topology)
    return cli.answer(words, argv, _answer)


def _answer(known: argparse.Namespace, config: Config) -> int:
    from jaxdistill.run.plan import (
        ahead,
        summary,  # JAX starts here
    )

    if known.json and not Path(known.json).absolute().parent.is_dir():
        raise ConfigError("--json", f"{known.json!r} lies in no folder; make it, or choose another.")
    found = topology.find(known.topology, known.slices)
    plan = ahead.plan(config, found)
    sys.stdout.write(summary.text(plan, found, known.config))
    if known.json:
        Path(known.json).write_text(json.dumps(summary.numbers(plan, found), indent=1) + "\n")
    return 1 if plan.why else 0
