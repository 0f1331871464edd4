"""Trials of a step that leave everything as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from hotloop.fitting.graph.pure_step import cloned


@contextlib.contextmanager
def undone(
    state: Callable[[], Sequence[torch.Tensor]], device: torch.device
) -> Iterator[list[torch.Tensor]]:
    """Put tensors and random states back after the block, however it ends.

    Args:
        state: gives the tensors that the block may change, the same ones each time.
        device: whose random state goes with them, and the host's.

    Yields:
        Copies of the tensors as they were.
    """
    before: list[torch.Tensor] = cloned(list(state()))
    random = random_state(device)
    try:
        yield before
    finally:
        for tensor, value in zip(state(), before, strict=True):
            tensor.copy_(value)
        torch.set_rng_state(random[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(random[1], device)


def same_values(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether tensors are equal, NaN being equal to NaN."""
    if torch.equal(first, second):
        return True
    if first.shape != second.shape or not first.is_floating_point():
        return False
    zeros = torch.zeros((), dtype=first.dtype, device=first.device)
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(
        torch.where(first.isnan(), zeros, first), torch.where(second.isnan(), zeros, second)
    )


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Return torch's random states of the host and the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
