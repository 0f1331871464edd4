"""The most memory that a piece of work takes beyond what the process held before it."""

from __future__ import annotations

import gc
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from hotloop.hardware import synchronize

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc(5), clear_refs


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
            self._before = _reset_process_peak()
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
            peak = _status_bytes("VmHWM")
        else:
            peak = int(torch.get_device_module(self.device).max_memory_allocated(self.device))
        if peak is not None:
            self.num_bytes = max(peak - self._before, 0)


def _reset_process_peak() -> int | None:
    """Let the peak begin anew and return what is held now; None where the system cannot."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return None  # no Linux, or a sandbox that forbids it
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    """Return a field of /proc/self/status, which is in kB there."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
