"""Parse the command line of every command: a config with changes, the docstring as help, errors as one line."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config import Config, override, parse_changes
from jaxdistill.run.config_files import load


def parser(name: str, description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """Make an argument parser for `jaxdistill NAME --config FILE`; the command then adds its own options.

    Arguments of the form `--config.a.b=value`, which change keys of the config, are parsed by `run_command`.

    Args:
        name: name of the command.
        description: text before the options in `--help`.
        epilog: text after the options in `--help`.
    """
    parser = argparse.ArgumentParser(
        prog=f"jaxdistill {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a Python file with get_config(), or the config.json of a run"
    )
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace, Config], int | None],
) -> int:
    """Parse the command line, load the config, apply its `--config.a.b=value` changes, and call the command's function.

    Args:
        parser: argument parser of the command, made by the function `parser`.
        argv: arguments of the command; None: `sys.argv[1:]`.
        work: the command's function, `(options, config) -> exit code`; it may return None for exit code 0.

    Returns:
        The exit code of `work`; or 2 if the config is wrong (a `ConfigError`), which is printed in one line.
    """
    options, rest = parser.parse_known_args(argv)
    try:
        return work(options, override(load(options.config), parse_changes(rest))) or 0
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
