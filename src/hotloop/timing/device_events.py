"""What a device itself takes for the parts of a step, without waiting for it."""

from __future__ import annotations

import itertools
from typing import Any

import torch

_MAX_PENDING = 32


class DeviceEvents:
    """Records an event behind each part of a sampled step, and reads them when they are there.

    Events lie in the device's queue between its kernels, so their distances are the device's
    times, idle ones included: from the last event of a step's predecessor to the first of its
    own the device had nothing of the step to do, which is what waiting for data costs it.

    Args:
        make_event: returns an object with ``record()``, ``query()`` and ``elapsed_time(later)``
            in milliseconds, as ``torch.cuda.Event(enable_timing=True)`` is.
    """

    def __init__(self, make_event: Any) -> None:
        self._make_event = make_event
        self._open: list[tuple[str, Any]] = []
        self._pending: list[list[tuple[str, Any]]] = []
        self._seconds: dict[str, float] = {}

    @classmethod
    def for_device(cls, device: torch.device | None) -> DeviceEvents | None:
        """Return events of an accelerator; None for a CPU, and for a backend without usable ones.

        Those of MPS wait for the device when two are compared, and raise where little lies between
        (https://github.com/pytorch/pytorch/pull/196395; in torch 2.13 they do).
        """
        if device is None or device.type in ("cpu", "meta", "mps"):
            return None
        event_type = getattr(torch.get_device_module(device), "Event", None)
        if event_type is None:
            return None
        return cls(lambda: event_type(enable_timing=True))

    def begin(self) -> None:
        """Begin a step, before its batch is asked for."""
        self._open = []
        self.record("")

    def record(self, phase: str) -> None:
        """End a part of the step."""
        event = self._make_event()
        event.record()
        self._open.append((phase, event))

    def end(self, phase: str) -> None:
        """End the step with its last part."""
        self.record(phase)
        self._pending.append(self._open)
        self._open = []
        self._read()
        if len(self._pending) > _MAX_PENDING:
            del self._pending[0]  # a device so far behind is looked at again later

    def take(self) -> dict[str, float]:
        """Return the seconds by part of the steps that are done, and begin anew."""
        self._read()
        seconds, self._seconds = self._seconds, {}
        self._pending, self._open = [], []
        return seconds

    def _read(self) -> None:
        while self._pending and self._pending[0][-1][1].query():
            marks = self._pending.pop(0)
            for (_, before), (phase, after) in itertools.pairwise(marks):
                elapsed = before.elapsed_time(after) / 1e3
                self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed
