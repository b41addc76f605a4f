"""Parse the command line of every command: a config with changes, the docstring as help, errors as one line."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from jaxdistill.run import failures, presets
from jaxdistill.run.config import Config, override, parse_changes
from jaxdistill.run.config_files import load_config
from jaxdistill.run.exit_codes import MISTAKE


class Parser(argparse.ArgumentParser):
    """The argument parser of one command, with the option --debug; it reports a mistake of the user in one line.

    Args:
        program: what the user types before the arguments, such as `jaxdistill train`; if empty, the program's name.
        description: text before the options in `--help`.
        epilog: text after the options in `--help`.
    """

    def __init__(self, program: str, description: str | None, epilog: str = ""):
        super().__init__(
            prog=program or None,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="print the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Print a mistake in the user's arguments as one line, with the command that shows help; exit with code 2."""
        self.exit(MISTAKE, f"error: {message}. `{self.prog} --help` explains the arguments.\n")


def parser(name: str, description: str | None, epilog: str = "") -> Parser:
    """Build an argument parser for a command that reads a config, `jaxdistill NAME --config FILE`.

    It has --config, --preset, --trust-source and --debug; the command adds its own options. Arguments of the form
    `--config.a.b=value`, which change keys of the config, are parsed by `run_command`.

    Args:
        name: name of the command.
        description: text before the options in `--help`.
        epilog: text after the options in `--help`.
    """
    made = Parser(f"jaxdistill {name}", description, epilog)
    add_config_options(made)
    return made


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace, Config], int | None],
    stopped: int = 0,
) -> int:
    """Parse a command line, load the config, apply the changes `--config.a.b=value`, and call the command's function.

    Args:
        parser: argument parser of the command, made by the function `parser`.
        argv: arguments of the command; None means `sys.argv[1:]`.
        work: the command's function, `(options, config) -> exit code`; it may return None for exit code 0.
        stopped: exit code of a command that was stopped by a signal after its state was saved.

    Returns:
        The exit code of `work`, or of an error, which is printed in one line (see `failures.py`).
    """
    options, rest = parser.parse_known_args(argv)
    folder = str(getattr(options, "workdir", "") or getattr(options, "out", ""))

    def run() -> int | None:
        options.config = options.config or presets.find(options.preset)
        return work(options, override(load_config(options.config, options.trust_source), parse_changes(rest)))

    return failures.run(run, options.debug, folder, stopped)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options with which a command loads its config: --config or --preset, and --trust-source."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", help="a Python file with get_config(), or the config.json of a run")
    which.add_argument("--preset", metavar="NAME", help="a config that comes along; see jaxdistill list presets")
    parser.add_argument(
        "--trust-source",
        action="store_true",
        help="with a config.json: run the Python file beside it, which registers parts that the config names",
    )
