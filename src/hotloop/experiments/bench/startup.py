"""What has to be done once before a device computes, each thing timed on its own."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from hotloop.distributed.group import set_current
from hotloop.hardware import synchronize

_SMALL = 1 << 20  # elements: enough for all threads of a CPU


@dataclass
class Started:
    """A device that has computed once.

    Attributes:
        device: which.
        seconds: what it took, by name, in order.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def move(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return host tensors on the device, and note the time; on a CPU they are there already."""
        if self.device.type == "cpu":
            return tensors
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        started = time.perf_counter()
        moved = [tensor.to(self.device) for tensor in tensors]
        synchronize(self.device)  # sync: the transfer is what is timed
        name = f"transfer of {num_bytes / 1e6:,.0f} MB to the device"
        self.seconds[name] = time.perf_counter() - started
        return moved


def start_device(device: torch.device) -> Started:
    """Start a device in a fresh process: its context, and its first kernel.

    It is then the one that ``KerasModel.fit`` takes by itself.

    The CPU needs no context; its first kernel starts the threads.
    """
    started_up = Started(device)
    if device.type != "cpu":
        started = time.perf_counter()
        if device.index is not None:
            set_current(device)
        torch.empty(1, device=device)
        synchronize(device)  # sync: the context is made now, not within the next figure
        started_up.seconds["device initialisation"] = time.perf_counter() - started
    values = torch.empty(_SMALL, device=device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        values.fill_(1.0).add_(1.0)
        synchronize(device)  # sync: the kernel is what is timed
        seconds.append(time.perf_counter() - started)
    started_up.seconds["first kernel, beyond a warm one"] = max(seconds[0] - min(seconds[1:]), 0.0)
    return started_up
