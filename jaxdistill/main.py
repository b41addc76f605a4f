"""The command line.

python -m jaxdistill.main --config configs/quickstart.py --workdir runs/quickstart [--config.a.b=value ...]
"""

import argparse
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxdistill import commands
from jaxdistill.config import describe, source

EPILOG = """
examples:
  python -m jaxdistill.main --config configs/quickstart.py --workdir runs/one
  python -m jaxdistill.main --config configs/quickstart.py --workdir runs/two --config.steps=500 \\
      "--config.objective.kd.term=kd(temperature=linear(start=8, end=2))"
  python -m jaxdistill.main --config runs/two/config.json --workdir runs/again      the same run once more

The same command resumes a run that was stopped or killed. Exit codes: 0 done, or stopped and saved; 2 a mistake in
the config; 3 the loss is not finite; 4 no usable checkpoint; 5 another process of the run is gone: start all of them.

every key, with its default:
"""


def parser() -> argparse.ArgumentParser:
    """The command line; `--config.a.b=value` words are left over for `override`."""
    keys = "\n".join(
        f"  --config.{path}={default}\n        {doc}" if default else f"\n  {path}: {doc}"
        for path, default, doc in describe()
    )
    words = commands.parser("main", "Distils a student from its teachers, as a config says.", EPILOG + keys)
    words.add_argument(
        "--workdir", required=True, metavar="DIR", help="for checkpoints, logs, results.json, report.html"
    )
    return words


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""

    def work(known: argparse.Namespace, config: ConfigDict) -> int:
        from jaxdistill import launch  # JAX starts here: a mistake in the words above shows at once

        return launch.launch(config, known.workdir, source(known.config))

    return commands.answer(parser(), argv, work)


def main() -> None:
    """The command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
