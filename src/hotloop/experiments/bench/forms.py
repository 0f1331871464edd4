"""What the forms of both trainings share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from hotloop.hardware import synchronize

FORMS = {
    "textbook": "the loop as a textbook writes it, with loss.item() in each step",
    "KerasModel": "the five lines",
    "floor": "the same arithmetic on resident tensors, fused Adam, and nothing else",
}
_FUSED_ADAM = ("cpu", "cuda", "mps", "xpu")


def has_fused_adam(device: torch.device) -> bool:
    """Tell whether torch updates all parameters in one kernel on this kind of device."""
    return device.type in _FUSED_ADAM


class EpochClock:
    """A callback that notes how long each epoch took, the first one from the clock's making on.

    Attributes:
        seconds: of each epoch.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self.seconds: list[float] = []
        self._count = count
        self._last = time.perf_counter()

    def on_validation_epoch_end(self, model: Any) -> None:
        """Note the time; called without validation data too."""
        self.tick(model.accelerator.device)

    def tick(self, device: torch.device) -> None:
        """Note the end of an epoch on ``device``."""
        synchronize(device)  # sync: the epoch is done when its last step is
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        self._count(len(self.seconds))
