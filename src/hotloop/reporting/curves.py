"""Curves of a history as an SVG picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hotloop.callbacks.plotting import draw_panels, is_drawn, without_stage

_PANELS_A_ROW = 2


def history_svg(history: Mapping[str, Sequence[Any]], monitor: str, mode: str) -> str:
    """Return a panel for each metric, the score first, and one for the learning rate."""
    columns = [column for column, values in history.items() if is_drawn(values)]
    names = [without_stage(column) for column in (monitor, *columns) if column != "epoch"]
    panels = list(dict.fromkeys(names))
    figure = draw_panels(history, panels, monitor, mode, panels_a_row=_PANELS_A_ROW)
    return figure_svg(figure)


def figure_svg(figure: Any) -> str:
    """Return a matplotlib figure as an ``<svg>`` element, its text as text."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # no date and no random ids: the same run gives the same page
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hotloop"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the text
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
