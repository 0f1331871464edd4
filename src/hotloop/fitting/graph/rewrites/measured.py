"""Which of several ways to compute something on CUDA is faster."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hotloop.fitting.graph.capture import CudaCapture, run_aside

_NUM_CALLS = 10  # in one graph, so that the host has no part in their time
_NUM_ROUNDS, _WARM_UP_SECONDS = 10, 0.02
_WORTHWHILE = 0.9


def is_faster(
    other: Callable[..., torch.Tensor],
    own: Callable[..., torch.Tensor],
    fakes: Sequence[torch.Tensor],
) -> bool:
    """Tell whether ``other`` takes a tenth less than ``own`` at least.

    Never where that cannot be measured, for want of memory say, nor under
    ``torch.use_deterministic_algorithms``, for no measurement is deterministic.

    Args:
        other: a function of tensors on CUDA.
        own: likewise.
        fakes: like the tensors that both are called with.
    """
    device = fakes[0].device
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return False
    try:
        tensors = [random_like(fake) for fake in fakes]
        calls = [functools.partial(call, *tensors) for call in (other, own)]
        other_seconds, own_seconds = fastest(calls, device)
    except RuntimeError:  # no memory, or no kernel; a failed capture raises others than it met
        return False
    return other_seconds < _WORTHWHILE * own_seconds


def each_form_once(decide: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return what decides for nodes of one operator, and asks once for those that are alike."""
    known: dict[Any, bool] = {}

    def decide_once(node: Any) -> bool:
        key = tuple(
            (value.shape, value.stride(), value.dtype, value.device)
            if isinstance(value, torch.Tensor)
            else repr(value)
            for value in (
                arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in node.args
            )
        )
        if key not in known:
            known[key] = decide(node)
        return known[key]

    return decide_once


def random_like(fake: torch.Tensor) -> torch.Tensor:
    """Return random numbers in the shape, strides and dtype of a fake tensor, on its device."""
    generator = torch.Generator(fake.device).manual_seed(0)  # the user's numbers stay as they are
    pairs = zip(fake.shape, fake.stride(), strict=True)
    num_held = 1 + sum((size - 1) * stride for size, stride in pairs) if fake.numel() else 0
    held = torch.empty(num_held, dtype=fake.dtype, device=fake.device)
    return held.normal_(generator=generator).as_strided(fake.shape, fake.stride())


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
