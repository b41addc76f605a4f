"""Distil a student from its teachers, as described by a config."""

import argparse
import sys
from collections.abc import Sequence

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.commands import cli
from jaxdistill.run.config import Config, iter_keys
from jaxdistill.run.config_files import source

EPILOG = """
examples:
  jaxdistill train --preset text --workdir runs/one --config.data.name="table(path='mine.csv', text='a', label='b')"
  jaxdistill train --config configs/quickstart.py --workdir runs/one
  jaxdistill train --config configs/quickstart.py --workdir runs/two --config.steps=500 \\
      "--config.objective.kd.term=kd(temperature=linear(start=8, end=2))"
  jaxdistill train --config runs/two/config.json --workdir runs/again               repeat a run
                                                                (with --trust-source if its file registers own parts)

The same command resumes a run that was stopped or killed. `python -m jaxdistill.main` does the same as `jaxdistill`.
Exit codes: 0 done, or stopped and saved; 2 a mistake in the config, the data or your own code, or no place, memory or
package; 3 the training diverged; 4 a file of the run is damaged; 5 another process of the run died: start all of them
again; 70 a bug of jaxdistill. --debug prints the traceback of an error.

all config keys, with their defaults:
"""


def parser() -> argparse.ArgumentParser:
    """Build the argument parser of `jaxdistill train`; its `--help` lists all config keys with their defaults."""
    keys = "\n".join(
        f"  --config.{path}={default}\n        {doc}" if default else f"\n  {path}: {doc}"
        for path, default, doc in iter_keys()
    )
    train_parser = cli.parser("train", __doc__, EPILOG + keys)
    train_parser.add_argument(
        "--workdir", metavar="DIR", help="folder for checkpoints, logs, trained models, results.json and report.html"
    )
    train_parser.add_argument(
        "--check",
        action="store_true",
        help="check config, data, caches and workdir as a run does before it trains, say what it would train, and stop",
    )
    return train_parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill train`, which trains and evaluates the models of a config, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """

    def work(options: argparse.Namespace, config: Config) -> None:
        if not options.workdir and not options.check:
            raise ConfigError("--workdir", "is missing. Name the folder of the run, such as --workdir runs/mine.")
        from jaxdistill.run.launch import (  # imports JAX, after the arguments and the config are checked
            check_report,
            launch,
        )

        if options.check:
            sys.stdout.write(check_report(config, options.workdir))
        else:
            is_record = options.config.endswith(".json")  # whose Python file runs only if the user allows it
            launch(config, options.workdir, source(options.config), options.trust_source or not is_record)

    return cli.run_command(parser(), argv, work)
