"""Follow one score over epochs: is this the best so far, and is it time to stop?"""

from __future__ import annotations

import math
from typing import Any

from hotloop.errors import SettingsError


class EarlyStopping:
    """Watches one score.

    A score is best when it is strictly better than all before; NaN never is. Training should
    stop once ``patience`` epochs in a row brought no better one.

    Attributes:
        best: the best score; None before the first finite one.
        best_epoch: its epoch, counted from 1; 0 before the first finite one.
        epoch: how many scores were seen.
    """

    def __init__(self, mode: str = "min", patience: int = 5) -> None:
        if mode not in ("min", "max"):
            raise SettingsError(f"mode={mode!r} is not known: pass 'min' or 'max'.")
        self.mode = mode
        self.patience = patience
        self.best: float | None = None
        self.best_epoch = 0
        self.epoch = 0

    def update(self, score: float) -> bool:
        """Take the next epoch's score; True when it is the best so far."""
        self.epoch += 1
        if math.isnan(score) or not self._is_better(score):
            return False
        self.best, self.best_epoch = score, self.epoch
        return True

    @property
    def should_stop(self) -> bool:
        """Whether the last ``patience`` scores brought no better one."""
        return self.epoch - self.best_epoch >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs to go on."""
        return {"best": self.best, "best_epoch": self.best_epoch, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from another watcher's ``state_dict``."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.epoch = state["epoch"]

    def forget_best(self) -> None:
        """Let the next finite score be the best one; patience counts from now."""
        self.best, self.best_epoch = None, self.epoch

    def _is_better(self, score: float) -> bool:
        if self.best is None:
            return True
        return score < self.best if self.mode == "min" else score > self.best
