"""Numbers with their units, as people read them."""

from __future__ import annotations

UNKNOWN = "unknown"
NOT_THERE = "--"


def gibibytes(num_bytes: int | None) -> str:
    """Return a memory as "3.2 GiB"; "unknown" for None."""
    return UNKNOWN if num_bytes is None else f"{num_bytes / 2**30:.1f} GiB"


def mebibytes(num_bytes: int | None) -> str:
    """Return a memory as "410 MiB"; "unknown" for None."""
    return UNKNOWN if num_bytes is None else f"{num_bytes / 2**20:,.0f} MiB"


def seconds(value: float) -> str:
    """Return a time with three digits and the unit that suits it: "412 ms", "3.25 s"."""
    if value >= 100:
        return f"{value:,.0f} s"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1:
            return f"{_three_digits(value * factor)} {unit}"
    return f"{_three_digits(value * 1e9)} ns"


def rate(value: float | None, unit: str) -> str:
    """Return a rate in billions, "85.1 GFLOP/s" for unit "FLOP/s"; in trillions from 10,000 on."""
    if value is None:
        return NOT_THERE
    if value >= 1e13:
        return f"{_three_digits(value / 1e12)} T{unit}"
    return f"{_three_digits(value / 1e9)} G{unit}"


def share(value: float | None) -> str:
    """Return a share as "71%"; two dashes for None."""
    if value is None:
        return NOT_THERE
    return f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
