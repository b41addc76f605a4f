"""Name the parts that a config can use, with what they do and their arguments.

jaxdistill list                    the kinds: losses, fusions, steps, models, datasets, transforms, schedules, ...
jaxdistill list losses             all losses
jaxdistill list losses kd          one loss: formula, source, arguments
"""

import sys
from collections.abc import Sequence

from jaxdistill.run import failures
from jaxdistill.run.commands.cli import Parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxdistill list`, which describes the parts that a config can name, and return its exit code.

    Args:
        argv: arguments of the command; None means `sys.argv[1:]`.
    """
    parser = Parser("jaxdistill list", __doc__)
    parser.add_argument("kind", nargs="?", default="", metavar="KIND", help="such as losses; without it, all kinds")
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="such as kd; without it, all of the kind")
    options = parser.parse_args(argv)

    def work() -> int:
        from jaxdistill.run import catalogue  # imports JAX, after the arguments are checked

        if not options.kind:
            text = "\n".join(catalogue.names())
        else:
            text = catalogue.details(options.kind, options.name) if options.name else catalogue.listing(options.kind)
        sys.stdout.write(text + "\n")
        return 0

    return failures.run(work, options.debug)
