"""Make one page of any finished runs: their results side by side, where their configs differ, links to their pages.

jaxdistill compare RUN RUN ... --out FOLDER

Prints a table of the students, and writes FOLDER/compare.html. Runs with the same test records are compared record by
record with the first one (McNemar's test). For variants over several seeds use `jaxdistill sweep`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.run import failures
from jaxdistill.run.commands.cli import Parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill compare`, which makes one page of several runs, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = Parser("jaxdistill compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="folders of finished runs")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="folder for compare.html")
    parser.add_argument("--model", default="student", help="student, control, or teachers/NAME; default: student")
    options = parser.parse_args(argv)

    def work() -> int:
        from jaxdistill.run.compare_runs import compare

        sys.stdout.write(compare(options.runs, options.model, options.out))
        return 0

    return failures.run(work, options.debug, str(options.out))
