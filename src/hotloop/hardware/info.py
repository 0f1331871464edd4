"""What devices this machine has, as far as torch, the driver and the system tell."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hotloop.hardware.choice import accelerator_available, accelerator_name, cpu_name
from hotloop.hardware.memory import memory_of
from hotloop.hardware.rates import DeviceRates, measure_rates
from hotloop.hardware.versions import backend_versions


@dataclass(frozen=True)
class DeviceInfo:
    """One device of this machine.

    Attributes:
        device: as torch writes it, ``cuda:0``.
        name: the hardware's name.
        memory_bytes: its memory in all; None where the backend does not tell.
        free_bytes: what is free of it now; None where the backend does not tell.
        capability: the backend's own words ("compute capability 9.0", "2 cores, 2 threads").
        cores: the CPU's cores that this process may use, or an accelerator's multiprocessors;
            None where the backend does not tell.
        threads: threads of torch's arithmetic on the CPU; None on an accelerator.
        versions: the libraries that compute on it and its driver, by name.
        rates: what it was measured to reach; None where that was not asked for.
    """

    device: str
    name: str
    memory_bytes: int | None
    free_bytes: int | None
    capability: str
    cores: int | None = None
    threads: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    rates: DeviceRates | None = None


def devices(measure: bool = False) -> list[DeviceInfo]:
    """Return every device of this machine, accelerators first, the CPU last.

    Args:
        measure: measure how fast each of them copies and multiplies; takes some seconds a device.
    """
    found: list[torch.device] = []
    accelerator = torch.accelerator.current_accelerator() if accelerator_available() else None
    if accelerator is not None:
        count = torch.accelerator.device_count()
        found = [torch.device(accelerator.type, i) for i in range(count)]
    return [describe_device(device, measure) for device in (*found, torch.device("cpu"))]


def describe_device(device: torch.device, measure: bool = False) -> DeviceInfo:
    """Return what is known of one device; ``measure`` as for ``devices``."""
    info = _cpu_info() if device.type == "cpu" else _accelerator_info(device)
    # afterwards: what measuring takes stays with torch, and is not free for a while
    return replace(info, rates=measure_rates(device)) if measure else info


def num_usable_cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerator_info(device: torch.device) -> DeviceInfo:
    module: Any = torch.get_device_module(device)
    cores = None
    free_bytes, memory_bytes = memory_of(device)
    words = []
    if hasattr(module, "get_device_capability"):
        found = module.get_device_capability(device)
        if isinstance(found, tuple):
            words.append(f"compute capability {found[0]}.{found[1]}")
    if hasattr(module, "get_device_properties"):
        properties = module.get_device_properties(device)
        cores = getattr(properties, "multi_processor_count", None)
        if cores is not None:
            words.append(f"{cores} multiprocessors")
    return DeviceInfo(
        device=str(device),
        name=accelerator_name(device),
        memory_bytes=memory_bytes,
        free_bytes=free_bytes,
        capability=", ".join(words),
        cores=cores,
        versions=backend_versions(device),
    )


def _cpu_info() -> DeviceInfo:
    free_bytes, memory_bytes = memory_of(torch.device("cpu"))
    cores, threads = num_usable_cores(), torch.get_num_threads()
    capability = f"{cores} cores, {threads} threads, {torch.backends.cpu.get_cpu_capability()}"
    return DeviceInfo(
        device="cpu",
        name=cpu_name(),
        memory_bytes=memory_bytes,
        free_bytes=free_bytes,
        capability=capability,
        cores=cores,
        threads=threads,
        versions=backend_versions(torch.device("cpu")),
    )
