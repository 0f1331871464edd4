"""Progress in a notebook: one output that is updated, with a live plot and a final table."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Mapping
from typing import Any

from hotloop.callbacks.formatting import format_duration, format_value
from hotloop.callbacks.plotting import history_png
from hotloop.callbacks.progress import Progress
from hotloop.errors import require_extra

_PLOT_SHARE = 0.1  # of the time, at most, goes to drawing
_STYLE = "font-family:monospace;font-size:13px;line-height:1.5"


class NotebookProgress(Progress):
    """HTML in one display that is replaced, so that the notebook does not grow.

    Args:
        plot: draw the score's curve after each epoch, as far as that takes at most a tenth of
            the time.
    """

    interval_seconds = 0.25

    def __init__(self, plot: bool = True) -> None:
        super().__init__()
        self._plot = plot
        self._display: Any = None
        self._history: dict[str, list[Any]] = {}
        self._messages: list[str] = []
        self._monitor, self._mode = "val_loss", "min"
        self._picture = self._table = ""
        self._values: dict[str, Any] = {}
        self._fit_started = time.perf_counter()
        self._drawing_seconds = 0.0
        self._in_fit = self._ended = False

    def start_fit(self, *, epochs: int, monitor: str, mode: str) -> None:
        """Open the output."""
        super().start_fit(epochs=epochs, monitor=monitor, mode=mode)
        self._monitor, self._mode, self._in_fit = monitor, mode, True
        self._ended = False
        self._fit_started = time.perf_counter()

    def start_stage(self, stage: str, epoch: int, num_batches: int | None) -> None:
        """Show the stage's empty bar."""
        super().start_stage(stage, epoch, num_batches)
        self._values = {}
        self._draw()

    def wants_values(self) -> bool:
        """The output is there to be drawn."""
        return True

    def show(self, values: Mapping[str, Any]) -> None:
        """Redraw the running stage."""
        self._values = dict(values)
        self._draw()

    def end_stage(self, values: Mapping[str, Any]) -> None:
        """Show the stage's final values."""
        prefix = f"{self.stage}_"
        self._values = {name.removeprefix(prefix): value for name, value in values.items()}
        if not values:
            self.stage = ""
        if not self.epoch:
            self._draw()

    def end_epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Add the epoch to the plot."""
        super().end_epoch(row, best)
        for name, value in row.items():
            self._history.setdefault(name, []).append(value)
        elapsed = time.perf_counter() - self._fit_started
        if self._plot and self._drawing_seconds <= _PLOT_SHARE * elapsed:
            self._draw_plot()
        self._draw()

    def write(self, text: str) -> None:
        """Add a line under the bars."""
        self._messages.append(text)
        self._draw()

    def end_fit(self, history: Mapping[str, list[Any]]) -> None:
        """Show the final plot and the table of the history."""
        rows = len(history.get(self._monitor, [])) if history else 0
        if self._in_fit and rows:
            self._history = {name: list(column[:rows]) for name, column in history.items()}
            if self._plot:
                self._draw_plot()
            self._table = _table(self._history)
        self._ended = True
        self._draw()

    def _draw_plot(self) -> None:
        started = time.perf_counter()
        picture = base64.b64encode(history_png(self._history, self._monitor, self._mode)).decode()
        self._picture = (
            f'<img alt="history" style="max-width:100%" src="data:image/png;base64,{picture}"/>'
        )
        self._drawing_seconds += time.perf_counter() - started

    def _draw(self) -> None:
        display = require_extra("IPython.display", "notebook", "the notebook display")
        output = display.HTML(self._html())
        if self._display is None:
            self._display = display.display(output, display_id=True)
        else:
            self._display.update(output)

    def _html(self) -> str:
        lines = []
        if self._in_fit:
            done = len(self._history["epoch"]) if self._table else self.last_epoch
            lines.append(_bar(done, self.epochs, self._fit_text(done)))
        if self.stage and not self._table:
            text = self._stage_text()
            # a bar of unknown length never stops moving
            lines.append(text if self._ended else _bar(self.step, self.num_batches, text))
        lines += [html.escape(text) for text in self._messages]
        body = "".join(f"<div>{line}</div>" for line in lines)
        return f'<div style="{_STYLE}">{body}</div>{self._picture}{self._table}'

    def _stage_text(self) -> str:
        total = f"/{self.num_batches}" if self.num_batches else ""
        parts = [f"{self.stage} {self.step}{total}"]
        if self.step:
            parts.append(f"{self.samples_per_second:,.0f} samples/s")
        left = self.seconds_left
        if left and not self._ended:
            parts.append(f"{format_duration(left)} left")
        parts += [
            f"{name} {format_value(name, value)}"
            for name, value in self._values.items()
            if isinstance(value, (int, float))
        ]
        return html.escape(", ".join(parts))

    def _fit_text(self, done: int) -> str:
        if self._table:
            elapsed = format_duration(time.perf_counter() - self._fit_started)
            return f"{done} of {self.epochs} epochs, {elapsed}"
        left = self.fit_seconds_left
        time_left = "" if left is None else f", {format_duration(left)} left"
        return f"epoch {min(done + 1, self.epochs)}/{self.epochs}{time_left}"


def _bar(value: int, total: int | None, text: str) -> str:
    state = f'value="{value}" max="{total}"' if total else ""
    return f'<progress {state} style="width:240px;vertical-align:middle"></progress> {text}'


def _table(history: Mapping[str, list[Any]]) -> str:
    import pandas as pd

    frame = pd.DataFrame(history)
    formatters = {name: (lambda value, name=name: format_value(name, value)) for name in frame}
    return str(frame.to_html(index=False, border=0, formatters=formatters))
