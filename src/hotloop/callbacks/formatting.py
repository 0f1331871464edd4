"""Numbers and times as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def format_value(name: str, value: Any) -> str:
    """Return a history value: counts plain, learning rates short, others with 4 digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or name == "epoch":
        return str(int(value)) if math.isfinite(value) else str(value)
    if name == "lr":
        return f"{value:.3g}"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return f"{value:.4f}"


def format_row(row: Mapping[str, Any]) -> str:
    """Return ``name value`` pairs of the scalars of a history row."""
    return "  ".join(
        f"{name} {format_value(name, value)}"
        for name, value in row.items()
        if name != "epoch" and isinstance(value, (int, float))
    )


def format_duration(seconds: float) -> str:
    """Return a time as ``40 ms``, ``0.4 s``, ``12 s``, ``3:05`` or ``2:03:05``."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
