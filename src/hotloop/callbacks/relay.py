"""Progress of a fit that runs in another process: sent from there, shown here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hotloop.callbacks.progress import Progress
from hotloop.distributed.processes import world_size

Send = Callable[[str, tuple[Any, ...]], None]


class RelayProgress(Progress):
    """Sends what a display is told to the process that shows it.

    Args:
        send: called with the name of an event and its values; ``replay`` takes both.
    """

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def start_fit(self, *, epochs: int, monitor: str, mode: str) -> None:
        """Begin a fit."""
        super().start_fit(epochs=epochs, monitor=monitor, mode=mode)
        self._send("start_fit", (epochs, monitor, mode))

    def start_stage(self, stage: str, epoch: int, num_batches: int | None) -> None:
        """Begin a stage."""
        super().start_stage(stage, epoch, num_batches)
        self._send("start_stage", (stage, epoch, num_batches))

    def wants_values(self) -> bool:
        """Another process shows them."""
        return True

    def show(self, values: Mapping[str, Any]) -> None:
        """Send how far the stage is; the samples are those of all processes, about."""
        shown = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self._send("show", (self.step, self.num_samples * world_size(), shown))

    def end_stage(self, values: Mapping[str, Any]) -> None:
        """Send the stage's final values."""
        self._send("end_stage", (dict(values),))

    def end_epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Send the epoch's row."""
        super().end_epoch(row, best)
        self._send("end_epoch", (dict(row), best))

    def write(self, text: str) -> None:
        """Send a line."""
        self._send("message", (text,))


class Replay:
    """Shows what another process' ``RelayProgress`` sends.

    Args:
        progress: the display.

    Attributes:
        history: columns of the finished epochs.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.history: dict[str, list[Any]] = {}

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        """Show one event."""
        if event == "start_fit":
            epochs, monitor, mode = values
            self.progress.start_fit(epochs=epochs, monitor=monitor, mode=mode)
        elif event == "show":
            self._show(*values)
        else:
            if event == "end_epoch":
                for name, value in values[0].items():
                    self.history.setdefault(name, []).append(value)
            getattr(self.progress, event)(*values)

    def _show(self, step: int, num_samples: int, values: dict[str, float]) -> None:
        progress = self.progress
        progress.step = step - 1  # advance counts this one
        if progress.advance(num_samples - progress.num_samples):
            progress.show(values)
