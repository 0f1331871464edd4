"""A function recorded as a CUDA graph, and what it leaves behind where that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Capture(Protocol):
    """Something that runs a recorded function again, with results at the same addresses."""

    results: Any

    def replay(self) -> None:
        """Run it."""


class CudaCapture:
    """A function captured as a CUDA graph; it has no arguments and reads fixed addresses.

    Raises:
        RuntimeError: what the function did cannot be captured; the device is as before then.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._pool = torch.cuda.graph_pool_handle()
        device, stream = torch.cuda.current_device(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[device]
        spare = generator.clone_state()
        try:
            # another thread (a loader that pins memory) may talk to the driver meanwhile
            with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
                self.results = function()
        except Exception:
            # torch 2.11 leaves a failed capture's stream current, its random numbers refused and
            # its memory pool open
            torch.cuda.set_stream(stream)
            generator.graphsafe_set_state(spare)
            with contextlib.suppress(RuntimeError):  # where it was closed, that is an error
                torch._C._cuda_endAllocateToPool(device, self._pool)
            raise

    def replay(self) -> None:
        """Queue the graph on the current stream."""
        self._graph.replay()
