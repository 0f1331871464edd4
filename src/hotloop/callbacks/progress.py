"""What the user sees while training: the protocol, and the choice of a display."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from hotloop.callbacks.environment import in_notebook, in_terminal
from hotloop.distributed.processes import is_main_process


class Progress:
    """A display that shows nothing; the base of those that do.

    ``advance`` runs after every step and is nearly free; when it returns True the loop hands
    fresh values to ``show`` as soon as it has them.

    Attributes:
        interval_seconds: the least time between two drawings within a stage.
        last_epoch: the number of the last epoch that is complete; 0 before the first.
        messages: the lines of ``message`` so far, shown or not.
    """

    interval_seconds = 0.1

    def __init__(self) -> None:
        self.epochs = 0
        self.stage, self.epoch = "", 0
        self.num_batches: int | None = None
        self.step = self.num_samples = 0
        self.started = self._due = 0.0
        self.last_epoch = self._num_ended = 0
        self._first_started = self._last_ended = 0.0
        self.messages: list[str] = []

    def start_fit(self, *, epochs: int, monitor: str, mode: str) -> None:
        """Begin a fit of at most ``epochs`` epochs whose score is ``monitor``."""
        del monitor, mode
        self.epochs = epochs
        self.last_epoch = self._num_ended = 0

    def start_stage(self, stage: str, epoch: int, num_batches: int | None) -> None:
        """Begin "train" or "val" of an epoch counted from 1; epoch 0 is outside of them."""
        self.stage, self.epoch, self.num_batches = stage, epoch, num_batches
        self.step = self.num_samples = 0
        self.started = time.perf_counter()
        self._due = self.started + self.interval_seconds
        self.last_epoch = max(self.last_epoch, epoch - 1)  # an earlier process may have done some
        if not self._num_ended and stage == "train":
            self._first_started = self.started

    def advance(self, num_samples: int) -> bool:
        """Count a step of ``num_samples`` samples; True when the display wants fresh values."""
        self.step += 1
        self.num_samples += num_samples
        now = time.perf_counter()
        if now < self._due:
            return False
        self._due = now + self.interval_seconds
        return self.wants_values()

    def skip(self, num_steps: int) -> None:
        """Begin the stage behind steps that an earlier process did."""
        self.step += num_steps

    def wants_values(self) -> bool:
        """Tell whether ``show`` does anything."""
        return False

    def show(self, values: Mapping[str, Any]) -> None:
        """Draw the running values of this stage, by name without the stage."""

    def end_stage(self, values: Mapping[str, Any]) -> None:
        """Take the stage's final values, by name with the stage; none after reading data."""

    def end_epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Take a complete row of the history; ``best`` when its score is the best so far."""
        del best
        self.last_epoch = row.get("epoch", self.last_epoch)
        self._num_ended += 1
        self._last_ended = time.perf_counter()

    def message(self, text: str) -> None:
        """Show a line of text and keep it."""
        self.messages.append(text)
        self.write(text)

    def write(self, text: str) -> None:
        """Show a line of text, not torn by the bar."""

    def end_fit(self, history: Mapping[str, list[Any]]) -> None:
        """Finish; also called when training raised."""

    @property
    def elapsed_seconds(self) -> float:
        """Time since the stage began."""
        return time.perf_counter() - self.started

    @property
    def samples_per_second(self) -> float:
        """Speed of this stage so far."""
        return self.num_samples / max(self.elapsed_seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Time left in this stage at the speed so far; None where its length is unknown."""
        if self.num_batches is None or not self.step:
            return None
        return self.elapsed_seconds / self.step * max(self.num_batches - self.step, 0)

    @property
    def fit_seconds_left(self) -> float | None:
        """Time left at the speed of the epochs so far; None before the first one is complete."""
        if not self._num_ended:
            return None
        epoch_seconds = (self._last_ended - self._first_started) / self._num_ended
        running_seconds = time.perf_counter() - self._last_ended
        left = epoch_seconds * (self.epochs - self.last_epoch) - running_seconds
        return max(left, self.seconds_left or 0.0)


_forward_to: list[Any] = []


def forward_progress(send: Any) -> None:
    """Let the displays of this process call ``send(method, arguments)`` instead of showing."""
    _forward_to.append(send)


def make_progress(quiet: bool, plot: bool = False) -> Progress:
    """Return the display for where the output goes.

    Args:
        quiet: show nothing.
        plot: draw the score's curve, where the display can (a notebook's).
    """
    if quiet or not is_main_process():
        return Progress()
    if _forward_to:
        from hotloop.callbacks.relay import RelayProgress

        return RelayProgress(_forward_to[-1])
    if in_notebook():
        from hotloop.callbacks.notebook import NotebookProgress

        return NotebookProgress(plot)
    if in_terminal():
        from hotloop.callbacks.terminal import TerminalProgress

        return TerminalProgress()
    from hotloop.callbacks.logfile import LogProgress

    return LogProgress()
