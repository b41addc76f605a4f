"""The command line: jaxdistill COMMAND, or python -m jaxdistill.main COMMAND.

Without a command it trains: python -m jaxdistill.main --config configs/quickstart.py --workdir runs/quickstart
"""

import importlib
import sys
from collections.abc import Sequence

from jaxdistill import __version__
from jaxdistill.core.errors import suggest

COMMANDS = {
    "train": "distil a student from its teachers",
    "cache": "write teachers' outputs once, so that runs need no teacher in memory",
    "plan": "compile a training step for chips that are not there: does it fit, what does it cost?",
    "sweep": "compare runs over values of config keys and seeds",
    "heads": "find the attention heads of a teacher that matter",
    "synthesize": "have a teacher write text for a student to learn from",
    "vocabulary": "cut a vocabulary to the texts of a config",
}

USAGE = f"""usage: jaxdistill COMMAND --config FILE [--config.a.b=value ...] ...

Knowledge distillation in JAX, version {__version__}.

commands:
{chr(10).join(f"  {name:<12}{sentence}" for name, sentence in COMMANDS.items())}

`jaxdistill COMMAND --help` explains a command; `jaxdistill train --help` lists every config key.
Start with: jaxdistill train --config configs/quickstart.py --workdir runs/quickstart
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"jaxdistill {__version__}\n")
        return 0
    if words[0].startswith("-"):
        words.insert(0, "train")
    name, *rest = words
    if name not in COMMANDS:
        sys.stderr.write(f"error: unknown command {name!r}. {suggest(name, COMMANDS)}\n")
        return 2
    return importlib.import_module(f"jaxdistill.run.commands.{name}").run(rest)


def main() -> None:
    """The command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
