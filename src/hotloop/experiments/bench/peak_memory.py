"""The most memory that a piece of work takes beyond what the process held before it."""

from __future__ import annotations

import gc
from types import TracebackType
from typing import Any

import torch

from hotloop.hardware import synchronize
from hotloop.memory import reset_high_water, resident_bytes, status_bytes, trim_host


class PeakMemory:
    """Watches memory between enter and exit: the device's, or on a CPU the process's own.

    Attributes:
        num_bytes: the most beyond the start; None before the exit, and where nobody tells.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.num_bytes: int | None = None
        self._before: int | None = None

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cpu":
            trim_host()  # else the work may fill memory that was freed before and is still held
            self._before = resident_bytes() if reset_high_water() else None
            return self
        module: Any = torch.get_device_module(self.device)
        if hasattr(module, "reset_peak_memory_stats"):
            synchronize(self.device)  # sync: what is still running holds memory
            module.reset_peak_memory_stats(self.device)
            self._before = int(module.memory_allocated(self.device))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is None:
            return
        if self.device.type == "cpu":
            peak = status_bytes("VmHWM")
        else:
            peak = int(torch.get_device_module(self.device).max_memory_allocated(self.device))
        self.num_bytes = max(peak - self._before, 0)
