"""Read values from the device for the bar without making the device or the host wait."""

from __future__ import annotations

from typing import Any

import torch


class Readback:
    """Copies a small tensor to the host behind the device's work, and says when it has arrived.

    On CUDA the copy goes to pinned memory with an event after it; the host looks at the event and
    never waits. Other backends have no such copy in all the versions that hotloop supports, and
    read at once.
    """

    def __init__(self) -> None:
        self._host: torch.Tensor | None = None
        self._event: Any = None

    @property
    def in_flight(self) -> bool:
        """Whether a copy was started and not yet taken."""
        return self._host is not None

    def start(self, values: torch.Tensor) -> None:
        """Start copying ``values`` (any shape, on the device)."""
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = values.cpu()  # sync: at most when the bar redraws

    def take(self) -> list[float] | None:
        """Return the copied values once they have arrived, None before."""
        if self._host is None or (self._event is not None and not self._event.query()):
            return None
        values: list[float] = self._host.flatten().tolist()
        self._host = self._event = None
        return values
