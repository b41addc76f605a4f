"""The command line: jaxdistill COMMAND, or python -m jaxdistill COMMAND.

Without a command, it is `train`: python -m jaxdistill.main --config configs/quickstart.py --workdir runs/quickstart
"""

import importlib
import sys
from collections.abc import Sequence

from jaxdistill import __version__
from jaxdistill.core.errors import suggest
from jaxdistill.run import failures

COMMANDS = {
    "train": "distil a student from its teachers",
    "predict": "use a trained model: write its predictions for the records of a file",
    "export": "write a trained model for ONNX Runtime, OpenVINO, XLA ..., and measure the file on the test records",
    "compare": "make one page of any finished runs",
    "explain": "measure how many bits of its teachers a model has, beyond the labels, by class and by layer",
    "graph": "write the relations between classes that a model sees, as a graph that losses can read",
    "list": "name the losses, fusions, steps, models, data sets, presets, ... with their arguments",
    "cache": "write the outputs of teachers to disk once, so that runs need no teacher in memory",
    "plan": "compile a training step for hardware you do not have: does it fit, and what does it cost?",
    "search": "find the student that is best within a budget of time and bytes on a device",
    "sweep": "run every combination of config values and seeds, and compare the results",
    "convert": "convert weights of PyTorch before 1.6 to a Hugging Face folder",
    "heads": "rank the attention heads of a teacher by importance",
    "synthesize": "generate training text with a teacher",
    "vocabulary": "reduce a vocabulary to the tokens that the training texts use",
}

USAGE = f"""usage: jaxdistill COMMAND ...

Knowledge distillation in JAX, version {__version__}.

commands:
{chr(10).join(f"  {name:<12}{purpose}" for name, purpose in COMMANDS.items())}

`jaxdistill COMMAND --help` explains a command; `jaxdistill train --help` lists every config key.
Start with your own texts: jaxdistill train --preset text --workdir runs/mine \\
    --config.data.name="table(path='reviews.csv', text='review', label='stars')"
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command, such as `run(["train", "--help"])`, and return its exit code.

    Args:
        argv: name of the command, followed by its arguments; None means `sys.argv[1:]`. If the first one is an option
            such as `--config`, the command is `train`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"jaxdistill {__version__}\n")
        return 0
    if arguments[0].startswith("-"):
        arguments.insert(0, "train")
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            sys.stderr.write(f"error: the argument {ascii(argument)[:200]} is not UTF-8. Write it again.\n")
            return 2
    name, *rest = arguments
    if name not in COMMANDS:
        sys.stderr.write(f"error: unknown command {name!r}. {suggest(name, COMMANDS)}\n")
        return 2
    command = lambda: importlib.import_module(f"jaxdistill.run.commands.{name}").run(rest)
    return failures.run(command, debug="--debug" in rest)  # a command reports its own errors; here, those of imports


def main() -> None:
    """Run the command that the arguments of this process name, and end the process with the command's exit code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
