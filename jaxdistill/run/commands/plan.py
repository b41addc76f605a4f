"""Compile the training step of a config for hardware you do not have, and report memory, collectives and time bounds.

jaxdistill plan --config configs/pods.py:qwen3 --topology v6e:16x16 [--config.a.b=value ...]

The step is the one that a run would execute, compiled by the compiler of the real chip; any machine can do this. No
weights are needed: `pretrained(FOLDER)` works with a folder that holds only a config.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config
from jaxdistill.run.output_checks import check_output
from jaxdistill.run.plan import topology

EPILOG = """
examples:
  jaxdistill plan --config configs/pods.py:qwen3 --topology v6e:16x16
  jaxdistill plan --config configs/pods.py:llama405 --topology v5p:4x8x8 --json plan.json
  jaxdistill plan --config configs/quickstart.py --topology cpu:8        virtual CPU devices, needs no TPU compiler

if the step does not fit, try in this order:
  --config.mesh.fsdp=-1 --config.mesh.data=1        split parameters, optimiser and teacher over all chips
  --config.mesh.tensor=4                            split heads and widths over 4 chips, if chips outnumber rows
  remat='full' in the student's model               recompute layers in the backward pass
  --config.chunks=16                                compute logits for fewer tokens at a time
  --config.accumulate=4                             split each batch into 4 parts, one after the other
  --config.batch_size=128                           fewer rows on each chip
  a larger topology, or --slices

how the numbers are obtained:
  memory         bytes of parameters, state and optimiser follow from shapes and shardings; temporaries (activations,
                 gradients, gathered layers) are reported by the compiler
  FLOPs          matrix products and convolutions, including every iteration of loops
  collectives    counted in the compiled program; bytes are those that one chip sends in a ring
  times          lower bounds from the vendor's published chip speed; nothing is run

exit codes: 0 the step fits; 1 it does not fit; 2 an error in the config
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill plan`, which compiles a training step for given devices, and return its exit code.

    Exit codes: 0 the step fits into the memory of the devices; 1 it does not fit; 2 the config is wrong.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = cli.parser("plan", __doc__, EPILOG)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="KIND:SIZE",
        help="kind (v5e, v5p, v6e, cpu) and size, such as v6e:16x16",
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="number of slices, joined by a network; 1")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the numbers to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    topology.configure_environment(parser.parse_known_args(argv)[0].topology)
    return cli.run_command(parser, argv, _print_plan)


def _print_plan(options: argparse.Namespace, config: Config) -> int:
    from jaxdistill.run.plan import (
        ahead,
        summary,  # imports JAX, after the environment is configured
    )

    if options.json:
        folder = Path(options.json).absolute().parent
        if not folder.is_dir():
            raise ConfigError("--json", f"the folder of {options.json!r} does not exist; create it, or choose another.")
        check_output(Path(options.json), "--json", options.overwrite)
    devices = topology.find(options.topology, options.slices)
    plan = ahead.plan(config, devices)
    sys.stdout.write(summary.text(plan, devices, options.config))
    if options.json:
        Path(options.json).write_text(json.dumps(summary.numbers(plan, devices), indent=1) + "\n")
    return 1 if plan.why else 0
