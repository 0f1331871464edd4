"""How much memory resident data may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from hotloop.errors import SettingsError

ENVIRONMENT_VARIABLE = "HOTLOOP_RESIDENT_BUDGET"
DEFAULT_SHARE = 0.3


def resident_budget(device: torch.device, share: float | None = None) -> int:
    """Return the bytes that resident data may take on ``device``.

    Args:
        device: where the data would be.
        share: of the memory that is free there now; the environment variable
            ``HOTLOOP_RESIDENT_BUDGET`` when not given, else 0.3.

    Raises:
        SettingsError: the share is not in [0, 1].
    """
    if share is None:
        text = os.environ.get(ENVIRONMENT_VARIABLE, str(DEFAULT_SHARE))
        try:
            share = float(text)
        except ValueError:
            share = -1.0
    if not 0 <= share <= 1:
        raise SettingsError(
            f"the resident budget is no share of free memory: pass resident_budget or set "
            f"{ENVIRONMENT_VARIABLE} to a number from 0 to 1."
        )
    return int(share * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on ``device``; on the host also under a cgroup's limit."""
    if device.type != "cpu":
        module: Any = torch.get_device_module(device)
        if hasattr(module, "mem_get_info"):
            return int(module.mem_get_info(device)[0])
    return min(_host_available(), _cgroup_available())


def _host_available() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 << 30  # unknown: a size that any training machine has


def _cgroup_available() -> int:
    for limit_name, used_name in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        limit, used = Path(limit_name), Path(used_name)
        if limit.exists() and used.exists():
            text = limit.read_text().strip()
            if text.isdigit():
                return max(int(text) - int(used.read_text()), 0)
    return 1 << 62
