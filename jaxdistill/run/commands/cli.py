"""What all commands have in common: a config with changes, the docstring as help, a mistake as one line."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jaxdistill.core.errors import ConfigError
from jaxdistill.run.config import Config, changes, override
from jaxdistill.run.config_files import load


def parser(name: str, description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """The words of `jaxdistill NAME --config FILE`; `--config.a.b=value` words are left over for `answer`."""
    words = argparse.ArgumentParser(
        prog=f"jaxdistill {name}",
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
    work: Callable[[argparse.Namespace, Config], int | None],
) -> int:
    """Does the work with the words and the config that they give; the exit code is its own, or 2 for a mistake."""
    known, rest = words.parse_known_args(argv)
    try:
        return work(known, override(load(known.config), changes(rest))) or 0
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
