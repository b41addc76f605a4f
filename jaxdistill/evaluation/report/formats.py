"""Format numbers for reports, with few digits and a unit."""

from collections.abc import Sequence


def percent(value: float) -> str:
    """Format a share as a percentage without the sign: 0.9342 -> 93.42."""
    return f"{100 * value:.2f}"


def decimal(value: float) -> str:
    """Format a number with four decimal places."""
    return f"{value:.4f}"


def count(value: float) -> str:
    """Format a count with three significant digits and an SI prefix: 272474 -> 272 k."""
    return _scaled(value, 1000, ("", " k", " M", " G", " T", " P"))


def size(value: float) -> str:
    """Format an amount of memory, in powers of 1024: 1089896 -> 1.04 MiB."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def file_size(value: float) -> str:
    """Format the size of a model or file, in powers of 1000: 1089896 -> 1.09 MB."""
    return _scaled(value, 1000, (" B", " kB", " MB", " GB", " TB"))


def duration(seconds: float) -> str:
    """Format a duration: 4.2 s, 3 min 05 s or 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def digits(value: float) -> str:
    """Format a number with three significant digits, including trailing zeros: 0.412, 1.30, 41.2, 1234."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def p_value(value: float) -> str:
    """Format a p-value with the sign before it: = 0.042, or < 0.001."""
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of texts as a table for the terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        numbers = (text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *numbers]).rstrip()

    return "\n".join(map(line, rows))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    """Format a number with three significant digits and the unit that fits its size.

    Args:
        value: the number; below 999.5 it is written as a whole number, with the first unit.
        base: ratio of two neighbouring units.
        units: texts of the units, the smallest first.
    """
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    return (digits(value) if power else f"{value:.0f}") + units[power]
