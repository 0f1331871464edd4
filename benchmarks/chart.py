"""The chart of one result file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HOTLOOP_COLOUR, FLOOR_COLOUR, PEER_COLOUR = "#e8743b", "#9aa0a6", "#5b8def"


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Write a PNG: a bar for each contestant, or lines where the job comes in several sizes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    variants = list(dict.fromkeys(row["variant"] for row in result["rows"]))
    groups = _groups(variants)
    if groups:
        figure = Figure(figsize=(4.5 * len(groups), 7), dpi=110, layout="constrained")
        _draw_lines(figure, result["rows"], groups)
    else:
        height = 0.9 + 0.32 * len(result["rows"])
        figure = Figure(figsize=(8, height), dpi=110, layout="constrained")
        for axes, variant in zip(
            figure.subplots(len(variants), squeeze=False)[:, 0], variants, strict=True
        ):
            _draw_bars(axes, [row for row in result["rows"] if row["variant"] == variant])
            if len(variants) > 1:
                axes.set_title(variant, loc="left")
    where = result["device_name"] or result["machine"]["cpu"]
    figure.suptitle(f"{result['title']}\n{where}, {result['threads']} threads", fontsize=10)
    FigureCanvasAgg(figure)
    figure.savefig(path)


def _groups(variants: list[str]) -> dict[str, list[str]]:
    """Return the variants called "rows x10" by their first word; none where no name is so."""
    groups: dict[str, list[str]] = {}
    for variant in variants:
        name, separator, times = variant.partition(" x")
        if separator and times.isdigit():
            groups.setdefault(name, []).append(variant)
    return groups


def _colour(contestant: str) -> str:
    if contestant.startswith("hotloop"):
        return HOTLOOP_COLOUR
    return FLOOR_COLOUR if contestant.startswith("floor") else PEER_COLOUR


def _draw_bars(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = rows[::-1]
    seconds = [row["seconds"] for row in rows]
    spread = [
        [row["seconds"] - row["fastest"] for row in rows],
        [row["slowest"] - row["seconds"] for row in rows],
    ]
    names = [row["contestant"] for row in rows]
    bars = axes.barh(
        names, seconds, xerr=spread, color=[_colour(name) for name in names], ecolor="#444444"
    )
    labels = [
        f"{row['seconds']:.3g} s" + (f"  ({row['ratio']:.2f})" if row["ratio"] else "")
        for row in rows
    ]
    axes.bar_label(bars, labels, padding=6, fontsize=8)
    axes.margins(x=0.2)
    axes.set_xlabel("seconds (ratio to the hand-written loop)")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_lines(figure: Any, rows: list[dict[str, Any]], groups: dict[str, list[str]]) -> None:
    figures = {"seconds": "seconds an epoch", "peak_memory_mib": "peak memory, MiB"}
    all_axes = figure.subplots(len(figures), len(groups), squeeze=False)
    for line_of_axes, (field, title) in zip(all_axes, figures.items(), strict=True):
        for axes, (name, variants) in zip(line_of_axes, groups.items(), strict=True):
            times = [int(variant.rpartition("x")[2]) for variant in variants]
            for contestant in dict.fromkeys(row["contestant"] for row in rows):
                found = {r["variant"]: r[field] for r in rows if r["contestant"] == contestant}
                values = [found.get(variant) for variant in variants]
                axes.plot(times, values, marker="o", markersize=4, label=contestant)
            axes.set(xscale="log", yscale="log", xlabel=f"times the {name}", ylabel=title)
            axes.grid(alpha=0.3)
    all_axes[0, 0].legend(fontsize=8)
