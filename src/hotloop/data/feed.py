"""Batches from the host to the device, copied while the device computes."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch

from hotloop.nested import iterate_leaves, map_leaves, to_device
from hotloop.timing.clock import StepClock


class Feed:
    """Moves batches to a device.

    On CUDA a batch is put into pinned memory and copied on a stream of its own, so that the copy
    runs beside the kernels of the step before, which the host has only queued; the step waits for
    it on the device and not on the host. Batches are read when they were read before, so that
    random numbers are drawn in the same order. Elsewhere it is a plain copy.

    Args:
        device: where batches go.
        clock: is told what moving takes on the host; None for nobody.
    """

    def __init__(self, device: torch.device, clock: StepClock | None = None) -> None:
        self.device = device
        self._clock = None if device.type == "cpu" else clock  # there nothing moves
        self._stream: Any = None

    def move(self, batch: Any) -> Any:
        """Return the batch on the device; what is there already is not copied."""
        if self._clock is None:
            return self._move(batch)
        if self._is_there(batch):
            return type(batch)(batch)
        # on the stream of the steps: what comes behind the wait for a copy is late by that copy
        self._clock.mark("data")
        started = perf_counter()
        moved = self._move(batch)
        self._clock.add("transfer", perf_counter() - started)
        self._clock.mark("transfer")
        return moved

    def _is_there(self, batch: Any) -> bool:
        """Tell whether a batch of the usual form is on the device as it is."""
        return type(batch) in (list, tuple) and all(
            isinstance(leaf, torch.Tensor) and leaf.device == self.device for leaf in batch
        )

    def _move(self, batch: Any) -> Any:
        if self.device.type != "cuda":
            return to_device(batch, self.device, non_blocking=self.device.type != "cpu")
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            moved = to_device(map_leaves(batch, _pinned), self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        for _, leaf in iterate_leaves(moved):
            if isinstance(leaf, torch.Tensor):
                leaf.record_stream(current)  # its memory is not used again before the step is done
        return moved


def _pinned(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" and not leaf.is_pinned():
        return leaf.pin_memory()
    return leaf
