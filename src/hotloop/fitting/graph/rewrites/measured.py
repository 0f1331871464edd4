"""Which of several ways to compute something on CUDA is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from hotloop.fitting.graph.capture import CudaCapture, run_aside

_NUM_CALLS = 10  # in one graph, so that the host has no part in their time
_NUM_ROUNDS, _WARM_UP_SECONDS = 10, 0.02
_WORTHWHILE = 0.9


def is_faster(
    other: Callable[[], torch.Tensor], own: Callable[[], torch.Tensor], device: torch.device
) -> bool:
    """Tell whether ``other`` takes a tenth less than ``own`` at least.

    Never without memory for it, nor under ``torch.use_deterministic_algorithms``, for no
    measurement is deterministic.
    """
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return False
    try:
        other_seconds, own_seconds = fastest([other, own], device)
    except torch.OutOfMemoryError:
        return False
    return other_seconds < _WORTHWHILE * own_seconds


def random_like(fake: torch.Tensor) -> torch.Tensor:
    """Return random numbers in the shape, strides and dtype of a fake tensor, on its device."""
    generator = torch.Generator(fake.device).manual_seed(0)  # the user's numbers stay as they are
    empty = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
    return empty.normal_(generator=generator)


def fastest(calls: Sequence[Callable[[], torch.Tensor]], device: torch.device) -> list[float]:
    """Return the shortest time of each call in seconds, in turn: a resting GPU wakes up slowly."""
    for call in calls:
        run_aside(call, device)
    captures = [_capture_many(call) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    started = time.perf_counter()
    while len(times[0]) < _NUM_ROUNDS or time.perf_counter() - started < _WARM_UP_SECONDS:
        for capture, found in zip(captures, times, strict=True):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call, unused-ignore]
            first.record()
            capture.replay()
            last.record()
            last.synchronize()  # sync: for each candidate, while a graph is made
            found.append(float(first.elapsed_time(last)) * 1e-3 / _NUM_CALLS)
    return [min(found) for found in times]


def _capture_many(call: Callable[[], torch.Tensor]) -> CudaCapture:
    def many() -> None:
        for _ in range(_NUM_CALLS):
            call()  # one result at a time

    return CudaCapture(many)
