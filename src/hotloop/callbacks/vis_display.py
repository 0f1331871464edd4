"""Show something of the user's own in a notebook while training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hotloop.callbacks.base import Callback, TrainedModel
from hotloop.errors import require_extra


class VisDisplay(Callback):
    """Runs ``display_fn(model)`` into one output area that is cleared before each run.

    Args:
        display_fn: shows whatever it likes.
        model: passed to the first run.
        init_display: run once at once.
        dis_period: epochs between runs.

    Raises:
        MissingExtraError: ipywidgets is not installed.
    """

    only_main_process = True

    def __init__(
        self,
        display_fn: Callable[[Any], Any],
        model: Any = None,
        init_display: bool = True,
        dis_period: int = 1,
    ) -> None:
        widgets = require_extra("ipywidgets", "notebook", "VisDisplay")
        self.display_fn, self.init_display = display_fn, init_display
        self.dis_period = dis_period
        self.out = widgets.Output()
        if init_display:
            self._open()
            with self.out:
                display_fn(model)

    def on_fit_start(self, model: TrainedModel) -> None:
        """Open the output area."""
        del model
        if not self.init_display:
            self._open()

    def on_validation_epoch_end(self, model: TrainedModel) -> None:
        """Show anew."""
        if len(model.history["epoch"]) % self.dis_period == 0:
            self.out.clear_output()
            with self.out:
                self.display_fn(model)

    def _open(self) -> None:
        require_extra("IPython.display", "notebook", "VisDisplay").display(self.out)
