"""Parse the command line of every command: a config with changes, the docstring as help, errors as one line."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config import Config, override, parse_changes
from jaxdistill.run.config_files import load


def parser(name: str, description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """Make the parser of `jaxdistill NAME --config FILE`; `--config.a.b=value` arguments are left to `run_command`."""
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
    """Parse the command line, load the config, and call `work`; return its exit code, or 2 for a `ConfigError`."""
    options, rest = parser.parse_known_args(argv)
    try:
        return work(options, override(load(options.config), parse_changes(rest))) or 0
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
