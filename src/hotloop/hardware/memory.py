"""How much memory a device has, and how much of it is free."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from hotloop.memory import windows_memory

_MEMINFO = Path("/proc/meminfo")


def memory_of(device: torch.device) -> tuple[int | None, int | None]:
    """Return a device's free bytes and all its bytes; None for what nobody tells."""
    if device.type == "cpu":
        return _host_memory()
    module: Any = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        free_bytes, all_bytes = module.mem_get_info(device)
        return int(free_bytes), int(all_bytes)
    if device.type == "mps":
        all_bytes = int(module.recommended_max_memory())
        return all_bytes - int(module.driver_allocated_memory()), all_bytes
    return None, None


def _host_memory() -> tuple[int | None, int | None]:
    if sys.platform == "win32":
        return windows_memory()
    if not _MEMINFO.exists():
        return None, None
    lines = _MEMINFO.read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    kibibytes = (int(fields[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    free_bytes, all_bytes = (1024 * count for count in kibibytes)
    return free_bytes, all_bytes
