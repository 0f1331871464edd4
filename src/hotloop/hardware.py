"""The device to train on, with the reason, and what this machine has."""

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


@dataclass(frozen=True)
class DeviceInfo:
    """One device of this machine.

    Attributes:
        device: as torch writes it, ``cuda:0``.
        name: the hardware's name.
        memory_bytes: its memory in all; None where the backend does not tell.
        free_bytes: what is free of it now; None where the backend does not tell.
        capability: the backend's own words ("compute capability 9.0", "2 cores, 2 threads").
    """

    device: str
    name: str
    memory_bytes: int | None
    free_bytes: int | None
    capability: str


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


def describe_choice(device: torch.device) -> DeviceChoice:
    """Return a choice that the caller made, for instance with ``devices=``."""
    name = cpu_name() if device.type == "cpu" else accelerator_name(device)
    return DeviceChoice(device, name, "asked for with devices=")


def accelerator_available() -> bool:
    """Tell whether torch sees an accelerator that works (CUDA, ROCm, MPS, XPU, NPU, ...)."""
    return torch.accelerator.is_available()


def devices() -> list[DeviceInfo]:
    """Return every device of this machine, accelerators first, the CPU last."""
    found: list[DeviceInfo] = []
    accelerator = torch.accelerator.current_accelerator() if accelerator_available() else None
    if accelerator is not None:
        count = torch.accelerator.device_count()
        found = [_accelerator_info(torch.device(accelerator.type, i)) for i in range(count)]
    found.append(_cpu_info())
    return found


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


def _accelerator_info(device: torch.device) -> DeviceInfo:
    module: Any = torch.get_device_module(device)
    free_bytes = memory_bytes = None
    if hasattr(module, "mem_get_info"):
        free_bytes, memory_bytes = (int(value) for value in module.mem_get_info(device))
    capability = ""
    if hasattr(module, "get_device_capability"):
        found = module.get_device_capability(device)
        if isinstance(found, tuple):
            capability = f"compute capability {found[0]}.{found[1]}"
    return DeviceInfo(str(device), accelerator_name(device), memory_bytes, free_bytes, capability)


def _cpu_info() -> DeviceInfo:
    memory_bytes = free_bytes = None
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(
            line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line
        )
        memory_bytes = int(fields["MemTotal"].split()[0]) * 1024
        free_bytes = int(fields["MemAvailable"].split()[0]) * 1024
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = (
        f"{cores} cores, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    return DeviceInfo("cpu", cpu_name(), memory_bytes, free_bytes, capability)
