"""The display of ``fit`` for loops of the user's own, under torchkeras' name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hotloop.callbacks.plotting import best_index, save_history_plot
from hotloop.callbacks.progress import make_progress

if TYPE_CHECKING:
    import pandas as pd


class VLog:
    """Shows and plots values that a loop of one's own hands it.

    Args:
        epochs: the most epochs.
        monitor_metric: the value that is the score.
        monitor_mode: "min" or "max".
        save_path: the plot's file.
        figsize: width and height in inches; None lets the number of panels decide.
        bar: show progress.
    """

    def __init__(
        self,
        epochs: int,
        monitor_metric: str = "val_loss",
        monitor_mode: str = "min",
        save_path: str | os.PathLike[str] = "history.png",
        figsize: Any = None,
        bar: bool = True,
    ) -> None:
        self.epochs, self.metric_name, self.metric_mode = epochs, monitor_metric, monitor_mode
        self.save_path, self.figsize = save_path, figsize
        self.history: dict[str, list[Any]] = {}
        self.progress = make_progress(quiet=not bar, plot=True)
        self._num_train_steps: int | None = None
        self._stage = ""

    def log_start(self) -> None:
        """Begin."""
        self.progress.start_fit(epochs=self.epochs, monitor=self.metric_name, mode=self.metric_mode)

    def log_step(self, info: Mapping[str, float], training: bool = True) -> None:
        """Take one step's values.

        Args:
            info: values by name.
            training: whether it was a step of training, not of validation.
        """
        stage = "train" if training else "val"
        if stage != self._stage:
            if stage == "val" and self._stage == "train":
                self._num_train_steps = self.progress.step
            self._stage = stage
            num_batches = self._num_train_steps if training else None
            epoch = len(self.history.get("epoch", [])) + 1
            self.progress.start_stage(stage, epoch, num_batches)
        if self.progress.advance(1):
            self.progress.show({k.removeprefix(f"{stage}_"): v for k, v in info.items()})

    def log_epoch(self, info: Mapping[str, float]) -> None:
        """Take one epoch's values, the score among them."""
        row = {"epoch": len(self.history.get("epoch", [])) + 1, **info}
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        scores = self.history[self.metric_name]
        if self._stage:
            self.progress.end_stage(info)
            self._stage = ""
        self.progress.end_epoch(row, best_index(scores, self.metric_mode) == len(scores) - 1)
        self._save_plot()

    def log_end(self) -> pd.DataFrame:
        """Finish; return the history."""
        import pandas as pd

        self.progress.end_fit(self.history)
        self._save_plot()
        return pd.DataFrame(self.history)

    def _save_plot(self) -> None:
        if self.history.get(self.metric_name):
            save_history_plot(
                self.history, self.save_path, self.metric_name, self.metric_mode, self.figsize
            )
