"""Is a graph worth its making? Times of steps with and without one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from hotloop.fitting.graph.declined import DeclinedError

_TIMED_STEPS = 12
# of eager steps left: compiling takes 5 to 60 s on a CPU, tracing and capture 0.1 to 2 s on CUDA
_WORTHWHILE_SECONDS = {"cpu": 60.0, "cuda": 4.0}
_LAUNCH_BOUND = 0.6  # of a step's time spent on the host; below, a graph has little to save
_ROOM = 2.0  # times what steps take: a graph shares its memory with nobody
_WORTHWHILE = 0.95


class Worth:
    """Times a dozen eager steps, and then a dozen of the graph's.

    Args:
        device: where steps run.
        num_steps: of the whole run; None when unknown.
    """

    def __init__(self, device: torch.device, num_steps: int | None) -> None:
        self.device, self.num_steps = device, num_steps
        self._eager: list[float] = []
        self._on_host: list[float] = []  # of eager steps, until the device had all its work
        self._graph: list[float] = []

    @property
    def has_begun(self) -> bool:
        """Whether a step was timed."""
        return bool(self._eager)

    def time_eager(self, run: Callable[[], Any]) -> Any:
        """Run an eager step, and return what it returns."""
        started = time.perf_counter()
        output = run()
        self._on_host.append(time.perf_counter() - started)
        self._synchronize()
        self._eager.append(time.perf_counter() - started)
        return output

    def is_known(self, num_done: int) -> bool:
        """Tell whether enough was timed to go over to a graph now.

        Raises:
            DeclinedError: it would not pay.
        """
        if self.num_steps is None:
            raise DeclinedError("the number of steps is unknown")
        if len(self._eager) < _TIMED_STEPS:
            return False
        seconds = statistics.median(self._eager)
        if statistics.median(self._on_host) < _LAUNCH_BOUND * seconds:
            raise DeclinedError("the device, and not Python, is what takes the time")
        left = (self.num_steps - num_done) * seconds
        if left < _WORTHWHILE_SECONDS.get(self.device.type, math.inf):
            raise DeclinedError(f"about {left:.0f} s of steps are left, too few to pay for it")
        if not self._has_room():
            raise DeclinedError("its steps take much of the device's memory, and a graph its own")
        return True

    def judge(self, started: float) -> None:
        """Take note of a step of the graph's, where eager ones were timed before.

        Raises:
            DeclinedError: the graph is no faster.
        """
        if not self._eager or len(self._graph) >= _TIMED_STEPS:
            return
        self._synchronize()
        self._graph.append(time.perf_counter() - started)
        if len(self._graph) < _TIMED_STEPS:
            return
        eager, graph = statistics.median(self._eager), statistics.median(self._graph)
        if graph > _WORTHWHILE * eager:
            raise DeclinedError(
                f"a graph takes {graph * 1e3:.3g} ms a step and eager {eager * 1e3:.3g}"
            )

    def _has_room(self) -> bool:
        if self.device.type != "cuda":
            return True
        allocated = torch.cuda.memory_allocated(self.device)
        step = torch.cuda.max_memory_allocated(self.device) - allocated
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - allocated > _ROOM * step

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)  # sync: a dozen steps of a trial
