"""Distils a student from its teachers, as a config says."""

import argparse
from collections.abc import Sequence

from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config, describe
from jaxdistill.run.config_files import source

EPILOG = """
examples:
  jaxdistill train --config configs/quickstart.py --workdir runs/one
  jaxdistill train --config configs/quickstart.py --workdir runs/two --config.steps=500 \\
      "--config.objective.kd.term=kd(temperature=linear(start=8, end=2))"
  jaxdistill train --config runs/two/config.json --workdir runs/again               the same run once more

The same command resumes a run that was stopped or killed. `python -m jaxdistill.main` does the same as `jaxdistill`.
Exit codes: 0 done, or stopped and saved; 2 a mistake in the config; 3 the loss is not finite; 4 no usable checkpoint;
5 another process of the run is gone: start all of them.

every key, with its default:
"""


def parser() -> argparse.ArgumentParser:
    """The words of the command."""
    keys = "\n".join(
        f"  --config.{path}={default}\n        {doc}" if default else f"\n  {path}: {doc}"
        for path, default, doc in describe()
    )
    words = cli.parser("train", __doc__, EPILOG + keys)
    words.add_argument(
        "--workdir", required=True, metavar="DIR", help="for checkpoints, logs, results.json, report.html"
    )
    return words


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""

    def work(known: argparse.Namespace, config: Config) -> int:
        from jaxdistill.run.launch import launch  # JAX starts here: a mistake in the words above shows at once

        return launch(config, known.workdir, source(known.config))

    return cli.answer(parser(), argv, work)
