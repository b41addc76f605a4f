"""What all commands have in common: a config with changes, the docstring as help, a mistake told in one line."""

import argparse
import sys
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from jaxdistill.config import changes, load, override
from jaxdistill.errors import ConfigError


def parser(name: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """`python -m jaxdistill.<name> --config FILE`; `--config.a.b=value` words are left over for `answer`."""
    words = argparse.ArgumentParser(
        prog=f"python -m jaxdistill.{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    words.add_argument(
        "--config", required=True, metavar="FILE", help="a .py with get_config(), or a saved config.json"
    )
    return words


def answer(
    words: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    work: Callable[[argparse.Namespace, ConfigDict], int | None],
) -> int:
    """Does the work with the words and the config that they give; the exit code is its own, or 2 for a mistake."""
    known, rest = words.parse_known_args(argv)
    try:
        return work(known, override(load(known.config), changes(rest))) or 0
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
