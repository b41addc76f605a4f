"""Measure how much information about its teachers the models of a run contain, in bits beyond the labels.

jaxdistill explain RUN --reference RUN --reference RUN --reference RUN

Prints a table, and adds a section to RUN/report.html. A reference is a run with the same test records, whose network
learned from labels alone: its control, or its student if it has no teacher. Give three of them, such as runs of the
same config with other seeds and without teachers; with fewer, the control scores too high. With --beyond RUN, the bits
that the student of a run with another teacher has, too, are not counted: the rest comes from this teacher alone.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.run import failures
from jaxdistill.run.commands.cli import Parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill explain`, and return its exit code.

    The command measures how much information about its teachers a model contains, in bits beyond the labels.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = Parser("jaxdistill explain", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run of a classifier with a teacher")
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="RUN",
        type=Path,
        help="folder of a run on labels alone, with the same test records; default: the control of RUN",
    )
    parser.add_argument(
        "--beyond",
        action="append",
        default=[],
        metavar="RUN",
        type=Path,
        help="folder of a run with the same test records and another teacher; bits of its student are not counted",
    )
    parser.add_argument("--trust-source", action="store_true", help="run the Python files that the runs have kept")
    options = parser.parse_args(argv)

    def work() -> int:
        from jaxdistill.run.explain import explain  # imports JAX, after the arguments are checked

        sys.stdout.write(explain(options.run, options.reference, options.beyond, options.trust_source))
        return 0

    return failures.run(work, options.debug)
