"""The history as a picture: the score over epochs, its best point, and the loss."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

_TRAIN_COLOUR, _VAL_COLOUR, _BEST_COLOUR = "#5b8def", "#e8743b", "#c0392b"


def best_index(scores: Sequence[float], mode: str) -> int | None:
    """Return the index of the first best score, NaN left out; None when there is none."""
    best: int | None = None
    for index, score in enumerate(scores):
        if math.isnan(score):
            continue
        if best is None or (score > scores[best] if mode == "max" else score < scores[best]):
            best = index
    return best


def draw_history(
    history: Mapping[str, Sequence[Any]], monitor: str, mode: str, figsize: Any = None
) -> Any:
    """Draw training and validation curves of the score, and of the loss beside it.

    Args:
        history: columns of one value an epoch, "epoch" among them.
        monitor: the column that is the score.
        mode: "min" or "max": which scores are better.
        figsize: width and height in inches.

    Returns:
        A ``matplotlib.figure.Figure``; matplotlib's global state is not touched.
    """
    score = without_stage(monitor)
    panels = [score] if score == "loss" else [score, "loss"]
    panels = [panels[0], *(p for p in panels[1:] if f"train_{p}" in history)]
    return draw_panels(history, panels, monitor, mode, len(panels), figsize)


def draw_panels(
    history: Mapping[str, Sequence[Any]],
    panels: Sequence[str],
    monitor: str,
    mode: str,
    panels_a_row: int,
    figsize: Any = None,
) -> Any:
    """Draw training and validation curves, a panel for each metric.

    Args:
        history: columns of one value an epoch, "epoch" among them.
        panels: metrics, named without their stage.
        monitor: the column that is the score.
        mode: "min" or "max": which scores are better.
        panels_a_row: at most.
        figsize: width and height in inches.

    Returns:
        A ``matplotlib.figure.Figure``; matplotlib's global state is not touched.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    num_columns = min(panels_a_row, len(panels))
    num_rows = -(-len(panels) // num_columns)
    size = figsize or (6.0 * num_columns, 4.0 * num_rows)
    figure = Figure(figsize=size, dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12))
    FigureCanvasAgg(figure)
    score = without_stage(monitor)
    for position, name in enumerate(panels, start=1):
        axes = figure.add_subplot(num_rows, num_columns, position)
        _draw_curves(axes, history, name)
        if name == score:
            _mark_best(axes, history, monitor, mode)
        else:
            axes.set_title(name)
    return figure


def history_png(history: Mapping[str, Sequence[Any]], monitor: str, mode: str) -> bytes:
    """Return the picture of ``draw_history`` as the bytes of a PNG."""
    buffer = io.BytesIO()
    draw_history(history, monitor, mode).savefig(buffer, format="png")
    return buffer.getvalue()


def save_history_plot(
    history: Mapping[str, Sequence[Any]],
    path: str | os.PathLike[str],
    monitor: str,
    mode: str,
    figsize: Any = None,
) -> None:
    """Write the picture of ``draw_history`` to ``path``; its ending tells the format."""
    draw_history(history, monitor, mode, figsize).savefig(path)


def without_stage(column: str) -> str:
    """Return a column's metric: "acc" of "train_acc" and "val_acc"."""
    return column.removeprefix("val_").removeprefix("train_")


def is_drawn(values: Sequence[Any]) -> bool:
    """Tell whether a column has a curve: a metric may give matrices."""
    return bool(values) and all(isinstance(value, (int, float)) for value in values)


def _draw_curves(axes: Any, history: Mapping[str, Sequence[Any]], name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = list(history.get("epoch", []))
    for column, colour, marker in (
        (f"train_{name}", _TRAIN_COLOUR, "o"),
        (f"val_{name}", _VAL_COLOUR, "o"),
        (name, _VAL_COLOUR, "o"),
    ):
        values = list(history.get(column, []))
        if is_drawn(values):
            size = 4 if len(values) <= 40 else 0
            axes.plot(
                epochs[: len(values)], values, color=colour, marker=marker, ms=size, label=column
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.lines:
        axes.legend(frameon=False)
    if not epochs:
        axes.set_xlim(0.5, 10.5)


def _mark_best(axes: Any, history: Mapping[str, Sequence[Any]], monitor: str, mode: str) -> None:
    scores = [float(value) for value in history.get(monitor, [])]
    best = best_index(scores, mode)
    if best is None:
        axes.set_title(f"best {monitor} = ?")
        return
    epoch = history["epoch"][best]
    axes.plot(epoch, scores[best], "*", color=_BEST_COLOUR, markersize=15, clip_on=False, zorder=5)
    axes.set_title(f"best {monitor} = {scores[best]:.4f} (epoch {epoch})")
