"""Timing calls on a device: warm-up apart, with the device's work done before the clock stops."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hotloop.hardware.choice import synchronize


@dataclass(frozen=True)
class Timing:
    """What ``time_calls`` measured, in seconds a call.

    Attributes:
        first: the very first call, with whatever is set up in it.
        steady: the calls after the warm-up, in order.
    """

    first: float
    steady: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the steady calls."""
        return statistics.median(self.steady)

    @property
    def fastest(self) -> float:
        """The least disturbed of the steady calls."""
        return min(self.steady)

    @property
    def slowest(self) -> float:
        """The most disturbed of the steady calls."""
        return max(self.steady)


def time_calls(
    function: Callable[[], Any],
    device: torch.device,
    *,
    warm_up: int = 2,
    min_calls: int = 3,
    max_calls: int = 50,
    budget_seconds: float = 0.5,
) -> Timing:
    """Time ``function`` call by call; each ends when the work that it queued is done.

    An accelerator works behind the program's back: a call returns when its kernels are queued.
    Without waiting for them a clock shows the time of queueing.

    Args:
        function: what is timed.
        device: where it works.
        warm_up: calls before those that count, the first one among them.
        min_calls: how many calls count at least.
        max_calls: how many count at most.
        budget_seconds: after this time no further call is begun, beyond ``min_calls``.
    """
    first = _time_call(function, device)
    for _ in range(warm_up - 1):
        _time_call(function, device)
    steady: list[float] = []
    while len(steady) < max_calls and (len(steady) < min_calls or sum(steady) < budget_seconds):
        steady.append(_time_call(function, device))
    return Timing(first, tuple(steady))


def _time_call(function: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)  # sync: what was queued before is not this call's
    started = time.perf_counter()
    function()
    synchronize(device)  # sync: the call's work is part of its time
    return time.perf_counter() - started
