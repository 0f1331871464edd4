"""Progress in a file or pipe: whole lines, few of them, no carriage returns."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from hotloop.callbacks.formatting import format_duration, format_row
from hotloop.callbacks.progress import Progress
from hotloop.printing import printable


class LogProgress(Progress):
    """One line an epoch, and within a long stage one line every ``interval_seconds``."""

    interval_seconds = 30.0

    def __init__(self, interval_seconds: float | None = None) -> None:
        super().__init__()
        self._epoch_started = 0.0
        if interval_seconds is not None:
            self.interval_seconds = interval_seconds

    def start_stage(self, stage: str, epoch: int, num_batches: int | None) -> None:
        """Begin a stage."""
        super().start_stage(stage, epoch, num_batches)
        if stage == "train" or not epoch:
            self._epoch_started = self.started

    def wants_values(self) -> bool:
        """A line is due."""
        return True

    def show(self, values: Mapping[str, Any]) -> None:
        """Print a line on the running stage."""
        place = f"epoch {self.epoch}/{self.epochs} {self.stage}" if self.epoch else self.stage
        steps = f"step {self.step}" + (f"/{self.num_batches}" if self.num_batches else "")
        left = self.seconds_left
        time_left = "" if left is None else f", {format_duration(left)} left"
        speed = f"{self.samples_per_second:,.0f} samples/s{time_left}"
        self.write("  ".join(filter(None, (f"{place} {steps}", format_row(values), speed))))

    def end_stage(self, values: Mapping[str, Any]) -> None:
        """Print the values of an evaluation; within a fit the epoch's line has them."""
        if values and not self.epoch:
            self.write(f"{self.stage}: {format_row(values)}")

    def end_epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Print the epoch's line."""
        super().end_epoch(row, best)
        seconds = format_duration(time.perf_counter() - self._epoch_started)
        mark = "  * best so far" if best else ""
        self.write(f"epoch {row['epoch']}/{self.epochs}  {format_row(row)}  ({seconds}){mark}")

    def write(self, text: str) -> None:
        """Print a line and flush it, so that whoever follows the file sees it."""
        print(printable(text), file=sys.stdout, flush=True)  # noqa: T201
