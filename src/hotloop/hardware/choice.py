"""The device to train on, with the reason."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hotloop.distributed.processes import local_rank


@dataclass(frozen=True)
class DeviceChoice:
    """A device and why it was chosen.

    Attributes:
        device: what tensors move to.
        name: the hardware's name, as the driver or the system gives it.
        reason: why this one, as a clause ("no accelerator found").
    """

    device: torch.device
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.device} ({self.name}): {self.reason}"


def choose_device(cpu: bool = False) -> DeviceChoice:
    """Choose the device to train on: the accelerator that torch sees, else the CPU.

    Args:
        cpu: stay on the CPU whatever there is.

    Returns:
        The choice. With several accelerators of one kind it is the current one, or, under
        torchrun, the one of this process's local rank.
    """
    if cpu:
        return DeviceChoice(torch.device("cpu"), cpu_name(), "asked for with cpu=True")
    accelerator = torch.accelerator.current_accelerator() if accelerator_available() else None
    if accelerator is None:
        return DeviceChoice(torch.device("cpu"), cpu_name(), "no accelerator found")
    count = torch.accelerator.device_count()
    index = local_rank() % count if "LOCAL_RANK" in os.environ else _current_index()
    device = torch.device(accelerator.type, index)
    if count == 1:
        reason = "the accelerator of this machine"
    else:
        reason = f"number {index} of {count} accelerators"
    return DeviceChoice(device, accelerator_name(device), reason)


def accelerator_available() -> bool:
    """Tell whether torch sees an accelerator that works (CUDA, ROCm, MPS, XPU, NPU, ...)."""
    return torch.accelerator.is_available()


def accelerator_name(device: torch.device) -> str:
    """Return the name of an accelerator, its type where the backend has no name for it."""
    module = torch.get_device_module(device)
    if hasattr(module, "get_device_name"):
        return str(module.get_device_name(device))
    return "Apple GPU" if device.type == "mps" else device.type.upper()


def cpu_name() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on ``device`` is done; nothing to wait for on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _current_index() -> int:
    accelerator: Any = torch.accelerator
    if hasattr(accelerator, "current_device_index"):
        return int(accelerator.current_device_index())
    return int(accelerator.current_device_idx())  # its name in torch 2.6
