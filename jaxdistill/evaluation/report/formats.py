"""Numbers as a reader wants them: few digits, a prefix, no false precision."""


def percent(value: float) -> str:
    """0.9342 -> 93.42; the column's title carries the unit."""
    return f"{100 * value:.2f}"


def decimal(value: float) -> str:
    """Four digits behind the point."""
    return f"{value:.4f}"


def count(value: float) -> str:
    """272474 -> 272 k: three digits and a prefix."""
    return _scaled(value, 1000, ("", " k", " M", " G", " T", " P"))


def size(value: float) -> str:
    """1089896 -> 1.04 MiB."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(seconds: float) -> str:
    """4.2 s, 3 min 05 s or 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def digits(value: float) -> str:
    """Three significant digits, trailing zeros kept: 0.412, 1.30, 41.2, 1234."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    """Three significant digits and a unit; what needs no prefix stays whole."""
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    return (digits(value) if power else f"{value:.0f}") + units[power]
