"""Configs for common tasks, which are named without a path: `jaxdistill train --preset text --config.data.name=...`.

A preset is a config file with `get_config()`; the first line of its docstring is shown by `jaxdistill list presets`.
"""

from pathlib import Path

from jaxdistill.core.errors import ConfigError, suggest

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of all presets (configs for common tasks), as a sorted list."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_"))


def find(name: str) -> str:
    """Return the path of the config file of a preset (a config for a common task), as text.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in names():
        raise ConfigError("--preset", f"unknown preset {name!r}. {suggest(name, names())}")
    return str(FOLDER / f"{name}.py")
