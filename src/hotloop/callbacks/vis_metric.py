"""The score's curve as a picture file that follows the training."""

from __future__ import annotations

import os
import time
from typing import Any

from hotloop.callbacks.base import Callback, TrainedModel
from hotloop.callbacks.environment import in_notebook
from hotloop.callbacks.plotting import save_history_plot
from hotloop.printing import printable

_DRAWING_SHARE = 0.05  # of the time, at most


class VisMetric(Callback):
    """Writes the history's plot to a file after epochs, as far as that costs at most 5% of time.

    Args:
        figsize: width and height in inches; None lets the number of panels decide.
        save_path: the picture file.
    """

    only_main_process = True

    def __init__(self, figsize: Any = None, save_path: str | os.PathLike[str] = "history.png"):
        self.figsize, self.save_path = figsize, save_path
        self._started = time.perf_counter()
        self._drawing_seconds = 0.0
        self._told = False

    def on_fit_start(self, model: TrainedModel) -> None:
        """Begin to count the time."""
        del model
        self._started, self._drawing_seconds = time.perf_counter(), 0.0
        self._told = False

    def on_validation_epoch_end(self, model: TrainedModel) -> None:
        """Draw, where enough time has passed since the last drawing."""
        if self._drawing_seconds <= _DRAWING_SHARE * (time.perf_counter() - self._started):
            self._draw(model)

    def on_fit_end(self, model: TrainedModel) -> None:
        """Draw the whole history, and say where."""
        if self._draw(model) and not in_notebook():
            model.accelerator.print(
                printable(f"the plot of {model.monitor} is in {self.save_path}")
            )

    def _draw(self, model: TrainedModel) -> bool:
        """Write the plot; False where that could not be, or there is nothing to draw."""
        if not model.accelerator.is_main_process or not model.history.get(model.monitor):
            return False
        started = time.perf_counter()
        num_rows = len(model.history[model.monitor])
        history = {name: column[:num_rows] for name, column in model.history.items()}
        try:
            save_history_plot(history, self.save_path, model.monitor, model.mode, self.figsize)
        except OSError as error:  # a full disk must not end the training
            if not self._told:
                model.accelerator.print(printable(f"the plot could not be written: {error}"))
            self._told = True
            return False
        finally:
            self._drawing_seconds += time.perf_counter() - started
        return True
