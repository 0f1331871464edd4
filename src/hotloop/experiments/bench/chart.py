"""The figures as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hotloop.experiments.bench.catalogue import CATALOGUE
from hotloop.experiments.bench.outcome import Outcome
from hotloop.experiments.units import seconds

COLOURS = {
    "textbook": "#8d99ae",
    "unsynchronised": "#c9a227",
    "warm": "#5b8def",
    "KerasModel": "#e8743b",
    "out=": "#2a9d8f",
    "floor": "#2a9d8f",
}


def draw_chart(outcome: Outcome, path: Path) -> None:
    """Write a PNG: a panel for each experiment, a bar for each device and form.

    Bars show the median of a warm product, step or epoch, lines its range. An axis is logarithmic
    where its bars differ tenfold.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = outcome.measured
    heights = [0.9 + 0.42 * len(outcome.rows_of(name)) for name in names]
    figure = Figure(figsize=(9, 0.8 + sum(heights)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(names), squeeze=False, height_ratios=heights)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        _draw_panel(axes, outcome, name)
    where = "; ".join(outcome.name_of(info["device"]) for info in outcome.devices)
    kind = ", quick" if outcome.quick else ""
    figure.suptitle(
        f"CPU against accelerator{kind}\n{where}, torch {outcome.versions['torch']}, "
        f"{outcome.date[:10]}",
        fontsize=10,
    )
    figure.savefig(path)


def _draw_panel(axes: Any, outcome: Outcome, name: str) -> None:
    from matplotlib.ticker import EngFormatter

    experiment, rows = CATALOGUE[name], outcome.rows_of(name)[::-1]
    labels = [f"{row.device}  {row.form}" for row in rows]
    medians = [row.median for row in rows]
    bars = axes.barh(
        labels,
        medians,
        height=0.66,
        color=[COLOURS[row.form] for row in rows],
        hatch=["" if row.is_timing else "//" for row in rows],
        edgecolor="white",
    )
    axes.errorbar(
        medians,
        labels,
        xerr=[
            [row.median - row.fastest for row in rows],
            [row.slowest - row.median for row in rows],
        ],
        fmt="none",
        ecolor="#333333",
        elinewidth=1,
        capsize=2,
    )
    is_log = max(medians) > 10 * min(medians)
    if is_log:
        axes.set_xscale("log")
        axes.set_xlim(left=min(row.fastest for row in rows) / 3)
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    reach = max(row.slowest for row in rows)
    for bar, row in zip(bars, rows, strict=True):
        axes.annotate(
            seconds(row.median),
            (row.slowest, bar.get_y() + bar.get_height() / 2),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlim(right=reach * (2.2 if is_log else 1.16))
    axes.set_title(f"{experiment.title}: {outcome.data[name]}", loc="left", fontsize=9)
    scale = ", logarithmic" if is_log else ""
    axes.set_xlabel(f"time of a warm {experiment.unit}{scale}", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    if any(not row.is_timing for row in rows):
        axes.text(
            1.0,
            1.02,
            "hatched: a first call, or a clock that did not wait",
            transform=axes.transAxes,
            ha="right",
            fontsize=7,
            color="#555555",
        )
