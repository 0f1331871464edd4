"""Progress in a terminal: a bar for the running stage, a line for each finished epoch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from hotloop.callbacks.formatting import format_duration, format_row, format_value
from hotloop.callbacks.progress import Progress
from hotloop.printing import printable

_TIMES = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
# what is shown beside the values, from wide terminals to narrow ones: tqdm's format of the line,
# whether the speed is there, and the time left for the fit
_LAYOUTS = (
    (f" {{desc}} {{percentage:3.0f}}%|{{bar:24}}| {_TIMES}", True, True),
    (f" {{desc}} {{percentage:3.0f}}%|{{bar:12}}| {_TIMES}", True, True),
    (f" {{desc}} {{percentage:3.0f}}%|{{bar:12}}| {_TIMES}", True, False),
    (f" {{desc}} {{percentage:3.0f}}% {_TIMES}", True, False),
    (" {desc} {percentage:3.0f}% [{remaining} left{postfix}]", True, False),
    (" {desc} {percentage:3.0f}% [{remaining} left{postfix}]", False, False),
    (" {desc} {percentage:3.0f}%{postfix}", False, False),
    (" {percentage:3.0f}%{postfix}", False, False),
)
_LAYOUTS_OF_UNKNOWN_LENGTH = (
    (" {desc} {n_fmt} steps [{elapsed}{postfix}]", True, True),
    (" {desc} {n_fmt} steps [{elapsed}{postfix}]", True, False),
    (" {desc} {n_fmt} steps [{elapsed}{postfix}]", False, False),
    (" {desc} {n_fmt} steps{postfix}", False, False),
    (" {n_fmt} steps{postfix}", False, False),
)


class TerminalProgress(Progress):
    """A tqdm bar while a stage runs; it is replaced by one line an epoch that stays."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._epoch_started = 0.0

    def start_stage(self, stage: str, epoch: int, num_batches: int | None) -> None:
        """Open the stage's bar."""
        import tqdm

        super().start_stage(stage, epoch, num_batches)
        if stage == "train" or not epoch:
            self._epoch_started = self.started
        tqdm.tqdm.monitor_interval = 0  # no watching thread: the loop itself redraws
        self._close_bar()
        place = f"epoch {epoch}/{self.epochs} {stage:5}" if epoch else stage
        self._bar = tqdm.tqdm(
            total=num_batches,
            desc=place,
            file=sys.stdout,
            leave=False,
            dynamic_ncols=True,
            bar_format=self._layouts[0][0],
            mininterval=0,
        )

    @property
    def _layouts(self) -> tuple[tuple[str, bool, bool], ...]:
        return _LAYOUTS if self.num_batches else _LAYOUTS_OF_UNKNOWN_LENGTH

    def wants_values(self) -> bool:
        """A bar is there to be drawn."""
        return self._bar is not None

    def show(self, values: Mapping[str, Any]) -> None:
        """Redraw the bar: the values, and of the rest what the terminal is wide enough for."""
        if self._bar is None:
            return
        shown = [
            f"{name} {format_value(name, value)}"
            for name, value in values.items()
            if isinstance(value, (int, float))
        ]
        self._bar.n = self.step
        for bar_format, with_speed, with_fit in self._layouts:
            speed = [f"{self.samples_per_second:,.0f} samples/s"] if with_speed else []
            fit_left = [f"fit {self._fit_left()} left"] if with_fit and self._fit_left() else []
            if self._fits(bar_format, [*speed, *shown, *fit_left]):
                break
        else:  # a longer line would not be replaced
            while shown and not self._fits(bar_format, shown):
                shown.pop()
        self._bar.refresh()

    def _fits(self, bar_format: str, postfix: list[str]) -> bool:
        """Set what the bar draws, and tell whether that is one line."""
        from tqdm.utils import disp_len

        self._bar.bar_format = bar_format
        self._bar.set_postfix_str(", ".join(postfix), refresh=False)
        drawing = self._bar.format_dict
        columns = drawing.pop("ncols")
        return not columns or disp_len(self._bar.format_meter(**drawing, ncols=None)) < columns

    def _fit_left(self) -> str:
        seconds = self.fit_seconds_left if self.epoch < self.epochs else None
        return "" if seconds is None else format_duration(seconds)

    def end_stage(self, values: Mapping[str, Any]) -> None:
        """Close the bar; outside a fit its values are printed, where there are any."""
        self._close_bar()
        if values and not self.epoch:
            self.write(f"{self.stage}: {format_row(values)}")

    def end_epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Print the epoch's line."""
        super().end_epoch(row, best)
        seconds = format_duration(time.perf_counter() - self._epoch_started)
        width = len(str(self.epochs))
        mark = _highlight("  * best so far") if best else ""
        self.write(
            f"epoch {row['epoch']:>{width}}/{self.epochs}  {format_row(row)}  ({seconds}){mark}"
        )

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        from tqdm import tqdm

        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()

    def end_fit(self, history: Mapping[str, list[Any]]) -> None:
        """Take the bar away."""
        del history
        self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _highlight(text: str) -> str:
    return text if os.environ.get("NO_COLOR") else f"\033[32m{text}\033[0m"
