"""Charts as SVG elements that take their colours from the page's style sheet.

So that one drawing serves a light and a dark page; matplotlib would fix the colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 760
_LABEL_WIDTH, _VALUE_WIDTH = 190, 140
_ROW_HEIGHT, _BAR_HEIGHT = 30, 18


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: left of it.
        value: its length.
        low: where the line of its range begins.
        high: where that ends.
        text: right of it.
        style: the CSS class that colours it.
        hint: shown when the pointer rests on it.
    """

    label: str
    value: float
    low: float
    high: float
    text: str
    style: str
    hint: str


@dataclass(frozen=True)
class Point:
    """One point of a roofline: what was achieved at so many operations a byte."""

    intensity: float
    flops_per_second: float
    label: str
    style: str
    hint: str


def bar_chart(bars: Sequence[Bar], title: str, value_width: float = _VALUE_WIDTH) -> str:
    """Return horizontal bars from 0 on, each with its range; so much space is right of them."""
    height = _ROW_HEIGHT * len(bars) + 8
    space = _WIDTH - _LABEL_WIDTH - value_width
    scale = space / max(max(bar.value, bar.high) for bar in bars)
    parts = []
    for number, bar in enumerate(bars):
        top = number * _ROW_HEIGHT + (_ROW_HEIGHT - _BAR_HEIGHT) / 2 + 4
        middle = top + _BAR_HEIGHT / 2
        width = max(bar.value * scale, 1.5)
        end = max(width, bar.high * scale)
        parts.append(
            f"<g><title>{escape(bar.hint)}</title>"
            f'<text class="label" x="{_LABEL_WIDTH - 10}" y="{middle + 4:.1f}" '
            f'text-anchor="end">{escape(bar.label)}</text>'
            f'<rect class="bar {bar.style}" x="{_LABEL_WIDTH}" y="{top:.1f}" '
            f'width="{width:.1f}" height="{_BAR_HEIGHT}" rx="3"/>'
        )
        if bar.high > bar.low:
            left, right = (_LABEL_WIDTH + value * scale for value in (bar.low, bar.high))
            parts.append(
                f'<path class="range" d="M{left:.1f} {middle:.1f}H{right:.1f}M{left:.1f} '
                f'{middle - 4:.1f}v8M{right:.1f} {middle - 4:.1f}v8"/>'
            )
        parts.append(
            f'<text class="value" x="{_LABEL_WIDTH + end + 8:.1f}" y="{middle + 4:.1f}">'
            f"{escape(bar.text)}</text></g>"
        )
    return _wrap(parts, height, title)


def roofline(
    peak_flops: float, copy_bytes: float, points: Sequence[Point], title: str, roof_text: str
) -> str:
    """Return what memory and arithmetic allow, and the points below it, on logarithmic axes.

    After Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52 (4), 2009.

    Args:
        peak_flops: operations a second, the roof.
        copy_bytes: bytes a second, its slope.
        points: what was achieved.
        title: for readers who hear the page.
        roof_text: written at the roof.
    """
    left, right, top, bottom = 64.0, 24.0, 24.0, 46.0
    height = 330.0
    ridge = peak_flops / copy_bytes
    xs = [point.intensity for point in points] + [ridge]
    x_low, x_high = _decades(min(xs) / 2, max(xs) * 4)
    ys = [point.flops_per_second for point in points] + [peak_flops, x_low * copy_bytes]
    y_low, y_high = _decades(min(ys) / 1.5, max(ys) * 1.5)

    def x_of(value: float) -> float:
        share = math.log(value / x_low) / math.log(x_high / x_low)
        return left + share * (_WIDTH - left - right)

    def y_of(value: float) -> float:
        share = math.log(value / y_low) / math.log(y_high / y_low)
        return height - bottom - share * (height - top - bottom)

    parts = [
        f'<path class="grid" d="M{x_of(value):.1f} {top}V{height - bottom}"/>'
        f'<text class="tick" x="{x_of(value):.1f}" y="{height - bottom + 18}" '
        f'text-anchor="middle">{value:g}</text>'
        for value in _powers(x_low, x_high)
    ]
    parts += [
        f'<path class="grid" d="M{left} {y_of(value):.1f}H{_WIDTH - right}"/>'
        f'<text class="tick" x="{left - 8}" y="{y_of(value) + 4:.1f}" '
        f'text-anchor="end">{value / 1e9:g}</text>'
        for value in _powers(y_low, y_high)
    ]
    parts.append(
        f'<path class="roof" d="M{x_of(x_low):.1f} {y_of(x_low * copy_bytes):.1f}'
        f'L{x_of(ridge):.1f} {y_of(peak_flops):.1f}H{_WIDTH - right}"/>'
        f'<text class="roof-text" x="{_WIDTH - right}" y="{y_of(peak_flops) - 8:.1f}" '
        f'text-anchor="end">{escape(roof_text)}</text>'
        f'<text class="tick" x="{(left + _WIDTH - right) / 2}" y="{height - 8}" '
        f'text-anchor="middle">operations for each byte moved</text>'
        f'<text class="tick" x="{left - 50}" y="{top - 8}">GFLOP/s</text>'
    )
    for point in points:
        x, y = x_of(point.intensity), y_of(point.flops_per_second)
        parts.append(
            f'<g><title>{escape(point.hint)}</title><circle class="point {point.style}" '
            f'cx="{x:.1f}" cy="{y:.1f}" r="6"/><text class="value" x="{x + 9:.1f}" '
            f'y="{y + 17:.1f}">{escape(point.label)}</text></g>'
        )
    return _wrap(parts, height, title)


def _wrap(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _decades(low: float, high: float) -> tuple[float, float]:
    """Return the powers of ten around a range."""
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def _powers(low: float, high: float) -> list[float]:
    first, last = round(math.log10(low)), round(math.log10(high))
    return [10.0**power for power in range(first, last + 1)]
