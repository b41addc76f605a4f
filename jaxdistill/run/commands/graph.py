"""Write the relations between classes that a trained network sees, as a graph that losses can read.

jaxdistill graph RUN --model teachers/NAME --out relations.json

Two classes are related if the network gives one a large probability, at temperature 4, where the other is right. The
file is a graph of classes, for the losses `graph` and `related_labels`. `jaxdistill explain` tells which relations of a
teacher a student has.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.core.errors import ConfigError
from jaxdistill.run import failures
from jaxdistill.run.commands.cli import Parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill graph`, which writes relations between classes, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = Parser("jaxdistill graph", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run of a classifier")
    parser.add_argument("--model", default="student", help="student, control, or teachers/NAME; default: student")
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="the file to write, in JSON")
    parser.add_argument("--nearest", default=3, type=int, metavar="N", help="relations of each class; 3")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--trust-source", action="store_true", help="run the Python file that the run has kept")
    options = parser.parse_args(argv)

    def work() -> int:
        if options.nearest < 1:
            raise ConfigError("--nearest", f"{options.nearest} relations; give 1 or more.")
        from jaxdistill.run.explain import write_relations  # imports JAX, after the arguments are checked
        from jaxdistill.run.output_checks import check_output
        from jaxdistill.run.predict import results

        results(options.run)
        check_output(options.out, "--out", options.overwrite)
        count = write_relations(options.run, options.model, options.out, options.nearest, options.trust_source)
        sys.stdout.write(f"{count} relations are in {options.out}\n")
        return 0

    return failures.run(work, options.debug)
